#include "src/quant/layerwise.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/quant/calibration.hpp"
#include "flywheel/quant/gptq.hpp"
#include "flywheel/quant/grid.hpp"
#include "src/quant/edited_archive.hpp"

namespace flywheel::inline v0::quant {
namespace {

/// `from` with these tensors as `written` has them.
result<io::archive> with_written(const io::archive& from, const std::set<std::size_t>& done,
                                 const std::filesystem::path& written) {
  if (done.empty()) return from;
  FLYWHEEL_TRY(const io::archive file, io::archive::open(written));
  io::archive_content content;
  content.metadata = from.metadata();
  content.tensors.assign(from.tensors().begin(), from.tensors().end());
  content.sources.assign(from.sources().begin(), from.sources().end());
  content.path = from.path();
  content.file_bytes = from.file_bytes();
  const auto part = static_cast<std::uint32_t>(content.sources.size());
  content.sources.insert(content.sources.end(), file.sources().begin(), file.sources().end());
  for (const std::size_t i : done) {
    io::tensor_info replaced = *file.find(content.tensors[i].name);
    replaced.part += part;
    content.tensors[i] = std::move(replaced);
  }
  return io::archive::assemble(std::move(content));
}

}  // namespace

result<void> write_layerwise(const io::archive& from, const std::vector<dtype>& types,
                             flywheel::detail::tensor_pipeline& pipeline, const layerwise_options& options) {
  FLYWHEEL_TRY(const auto passes, plan_passes(from, options.memory));
  std::set<std::size_t> done;
  for (const std::vector<std::string>& pass : passes) {
    std::vector<std::size_t> wanted, open;
    for (const std::string& name : pass) {
      const io::tensor_info* t = from.find(name);
      if (t == nullptr) continue;
      const auto i = static_cast<std::size_t>(t - from.tensors().data());
      if (types[i] == t->type || find_grid(types[i]) == nullptr) continue;
      wanted.push_back(i);
      if (!pipeline.complete(i)) open.push_back(i);
    }
    if (!open.empty()) {
      FLYWHEEL_TRY(const std::filesystem::path written, pipeline.partial());
      // What this pass itself wrote before an interruption does not count: all its tensors saw the same activations.
      FLYWHEEL_TRY(const io::archive so_far, with_written(from, done, written));
      calibration_options how;
      how.chunk = options.chunk;
      how.max_chunks = options.max_chunks;
      how.wants = [&](std::string_view name) {
        for (const std::size_t i : open)
          if (from.tensors()[i].name == name) return true;
        return false;
      };
      how.context = options.ctx;
      how.control.stop = options.control.stop;
      FLYWHEEL_TRY(const moments_by_tensor moments, collect_moments(so_far, options.text, how));
      for (const std::size_t i : open) {
        const io::tensor_info& t = from.tensors()[i];
        const auto seen = moments.find(t.name);
        if (seen == moments.end()) {
          wanted.erase(std::find(wanted.begin(), wanted.end(), i));
          continue;
        }
        const tensor_reading reading(from, t);
        buffer scratch;
        FLYWHEEL_TRY(const std::span<const std::byte> stored, from.bytes(t, scratch));
        auto rounded = gptq(tensor_view(t.type, t.dims, stored.data()), *seen->second, types[i], {}, options.ctx,
                            {{}, options.control.stop});
        if (!rounded) return error{rounded.error().code, rounded.error().message, "tensor '" + t.name + "'"};
        const std::byte* bytes = rounded->view().data;
        FLYWHEEL_CHECK(pipeline.put(i, std::vector<std::byte>(bytes, bytes + rounded->bytes())));
      }
    }
    done.insert(wanted.begin(), wanted.end());
  }
  FLYWHEEL_CHECK(pipeline.partial());  // the last tensor too is complete then
  return {};
}

}  // namespace flywheel::inline v0::quant
