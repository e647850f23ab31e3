#include "flywheel/io/writer.hpp"

#include <string_view>
#include <unordered_set>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/gguf.hpp"
#include "src/io/output_file.hpp"
#include "src/io/reading.hpp"
#include "src/io/writing.hpp"

namespace flywheel::inline v0::io {

struct writer::state {
  detail::output_file out;
  detail::layout layout;
  std::vector<std::string> names;
  std::size_t current = 0;    ///< The tensor being written; names.size() when all are complete.
  std::uint64_t written = 0;  ///< Bytes of it.
  bool finished = false;

  /// Pads and steps over tensors that are complete (those without bytes too).
  result<void> advance() {
    static constexpr std::byte zeros[64] = {};
    while (current < names.size() && written == layout.bytes[current]) {
      std::uint64_t padding = detail::align_up(out.position(), layout.alignment) - out.position();
      while (padding > 0) {
        const std::uint64_t n = std::min<std::uint64_t>(padding, sizeof zeros);
        FLYWHEEL_CHECK(out.write(std::span(zeros).first(static_cast<std::size_t>(n))));
        padding -= n;
      }
      ++current;
      written = 0;
    }
    return {};
  }
  [[nodiscard]] error refuse(std::string message) const {
    return {errc::invalid_argument, std::move(message),
            current < names.size() ? out.where() + ": tensor " + detail::in_quotes(names[current]) : out.where()};
  }
};

writer::writer(std::unique_ptr<state> s) noexcept : state_(std::move(s)) {}
writer::writer(writer&&) noexcept = default;
writer& writer::operator=(writer&&) noexcept = default;
writer::~writer() = default;

result<writer> writer::create(const std::filesystem::path& path, io::container kind, const metadata& meta,
                              std::span<const tensor_plan> tensors) {
  return flywheel::detail::guarded([&]() -> result<writer> {
    const std::string where = path.string();
    std::unordered_set<std::string_view> names;
    names.reserve(tensors.size());
    std::vector<std::string> kept;
    kept.reserve(tensors.size());
    if (tensors.size() > detail::max_tensors)
      return error{errc::unsupported, "more than " + std::to_string(detail::max_tensors) + " tensors", where};
    for (const tensor_plan& tensor : tensors) {
      const auto refuse = [&](std::string message) {
        return error{errc::invalid_argument, std::move(message), where + ": tensor " + detail::in_quotes(tensor.name)};
      };
      if (tensor.name.empty()) return refuse("the name is empty");
      if (tensor.name.size() > detail::max_name_bytes) return refuse("the name is too long");
      if (!detail::valid_utf8(tensor.name)) return refuse("the name is not valid UTF-8");
      if (!names.insert(tensor.name).second) return refuse("there are two tensors with this name");
      kept.push_back(tensor.name);
    }
    FLYWHEEL_TRY(detail::output_file out, detail::output_file::create(path));
    FLYWHEEL_TRY(detail::layout layout, kind == container::gguf ? detail::write_gguf_header(out, meta, tensors)
                                                                : detail::write_safetensors_header(out, meta, tensors));
    auto s = std::unique_ptr<state>(new state{std::move(out), std::move(layout), std::move(kept)});
    FLYWHEEL_CHECK(s->advance());
    return writer(std::move(s));
  });
}

result<void> writer::write(std::span<const std::byte> bytes) {
  return flywheel::detail::guarded([&]() -> result<void> {
    if (!state_ || state_->finished) return error{errc::invalid_argument, "the writer has finished", {}};
    state& s = *state_;
    if (bytes.empty()) return {};
    if (s.current == s.names.size()) return s.refuse("all tensors are complete already");
    const std::uint64_t missing = s.layout.bytes[s.current] - s.written;
    if (bytes.size() > missing)
      return s.refuse("a piece of " + std::to_string(bytes.size()) + " bytes is more than the " +
                      std::to_string(missing) + " that the tensor lacks");
    FLYWHEEL_CHECK(s.out.write(bytes));
    s.written += bytes.size();
    return s.advance();
  });
}

result<void> writer::finish() {
  return flywheel::detail::guarded([&]() -> result<void> {
    if (!state_ || state_->finished) return error{errc::invalid_argument, "the writer has finished", {}};
    state& s = *state_;
    if (s.current < s.names.size())
      return s.refuse("the tensor lacks " + std::to_string(s.layout.bytes[s.current] - s.written) + " bytes");
    s.finished = true;
    return s.out.commit();
  });
}

}  // namespace flywheel::inline v0::io
