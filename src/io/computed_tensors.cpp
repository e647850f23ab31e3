#include "src/io/computed_tensors.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::io {
namespace {

class constant final : public computed_tensor {
 public:
  explicit constant(std::vector<float> values) : values_(std::move(values)) {}
  [[nodiscard]] result<void> rows(std::int64_t, std::int64_t count, std::byte* out) const override {
    if (count > 0) std::memcpy(out, values_.data(), values_.size() * sizeof(float));
    return {};
  }

 private:
  std::vector<float> values_;
};

}  // namespace

std::unique_ptr<computed_tensor> make_constant(std::vector<float> values) {
  return std::make_unique<constant>(std::move(values));
}

std::uint64_t computed_source::add(std::unique_ptr<computed_tensor> tensor, std::int64_t rows, std::size_t row_bytes) {
  const std::uint64_t offset = size_;
  const std::uint64_t bytes = static_cast<std::uint64_t>(rows) * row_bytes;
  if (bytes > 0) entries_.push_back({offset, bytes, row_bytes, std::move(tensor)});
  size_ += bytes;
  return offset;
}

std::vector<computed_source::entry>::const_iterator computed_source::find(std::uint64_t offset) const noexcept {
  const auto after = std::upper_bound(entries_.begin(), entries_.end(), offset,
                                      [](std::uint64_t at, const entry& e) { return at < e.offset; });
  return after == entries_.begin() || offset >= size_ ? entries_.end() : std::prev(after);
}

result<void> computed_source::read(std::uint64_t offset, std::span<std::byte> out) const {
  return flywheel::detail::guarded([&]() -> result<void> {
    if (offset > size_ || out.size() > size_ - offset)
      return error{errc::invalid_argument, "the range lies beyond the computed tensors", {}};
    for (auto e = find(offset); !out.empty(); ++e) {
      // A piece of one row, then whole rows, then a piece again.
      std::uint64_t at = offset - e->offset;
      std::uint64_t left = std::min<std::uint64_t>(out.size(), e->bytes - at);
      std::vector<std::byte> row;
      while (left > 0) {
        const auto first = static_cast<std::int64_t>(at / e->row_bytes);
        const auto skip = static_cast<std::size_t>(at % e->row_bytes);
        std::size_t n = 0;
        if (skip == 0 && left >= e->row_bytes) {
          const std::uint64_t whole = left / e->row_bytes;
          FLYWHEEL_CHECK(e->tensor->rows(first, static_cast<std::int64_t>(whole), out.data()));
          n = static_cast<std::size_t>(whole * e->row_bytes);
        } else {
          row.resize(e->row_bytes);
          FLYWHEEL_CHECK(e->tensor->rows(first, 1, row.data()));
          n = static_cast<std::size_t>(std::min<std::uint64_t>(left, e->row_bytes - skip));
          std::memcpy(out.data(), row.data() + skip, n);
        }
        out = out.subspan(n);
        at += n;
        offset += n;
        left -= n;
      }
    }
    return {};
  });
}

void computed_source::release(std::uint64_t offset, std::uint64_t length) const noexcept {
  for (auto e = find(offset); e != entries_.end() && e->offset < offset + length; ++e) e->tensor->release();
}

}  // namespace flywheel::inline v0::io
