#include "src/model/row_reader.hpp"

#include <algorithm>
#include <string>

#include "flywheel/detail/try.hpp"
#include "kernels/registry.hpp"

namespace flywheel::inline v0::detail {

result<row_reader> row_reader::create(const io::archive& from, const io::tensor_info& tensor, const context& ctx) {
  row_reader made(from, tensor);
  made.mapped_ = from.sources()[tensor.part]->mapped();
  made.decode_ = kernels::find_to_f32(kernels::find_cluster(ctx.isa().selected), tensor.type);
  if (made.decode_ == nullptr)
    return error{errc::unsupported, "tensors of type " + std::string(to_string(tensor.type)) + " cannot be decoded",
                 from.path().string() + ": " + tensor.name};
  return made;
}

std::int64_t row_reader::rows_at_once() const noexcept {
  return std::max<std::int64_t>(1, (std::int64_t{1} << 16) / std::max<std::int64_t>(1, tensor_->dims.cols()));
}

result<std::span<const float>> row_reader::read(std::int64_t first, std::int64_t count, scratch& own) const {
  const std::int64_t cols = tensor_->dims.cols();
  const std::size_t row = row_bytes(tensor_->type, cols);
  const std::uint64_t at = static_cast<std::uint64_t>(first) * row;
  const std::byte* stored = nullptr;
  if (mapped_.empty()) {
    own.stored.resize(static_cast<std::size_t>(count) * row);
    FLYWHEEL_CHECK(from_->read(*tensor_, at, own.stored));
    stored = own.stored.data();
  } else {
    stored = mapped_.data() + tensor_->offset + at;
  }
  own.values.resize(static_cast<std::size_t>(count * cols));
  for (std::int64_t r = 0; r < count; ++r)
    decode_(stored + static_cast<std::size_t>(r) * row, cols, own.values.data() + r * cols);
  return std::span<const float>(own.values);
}

}  // namespace flywheel::inline v0::detail
