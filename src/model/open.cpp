#include "flywheel/model/open.hpp"

#include <system_error>

#include "flywheel/detail/try.hpp"
#include "src/model/device_safetensors.hpp"
#include "src/model/hugging_face/translate.hpp"

namespace flywheel::inline v0 {

result<io::archive> open_model_archive(const std::filesystem::path& path) {
  return detail::guarded([&]() -> result<io::archive> {
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored)) {
      FLYWHEEL_TRY(io::archive file, io::archive::open(path));
      return detail::holds_model(file) ? detail::open_safetensors_model(file) : file;
    }
    FLYWHEEL_TRY(const hugging_face::folder folder, hugging_face::folder::open(path));
    return hugging_face::translate(folder);
  });
}

}  // namespace flywheel::inline v0
