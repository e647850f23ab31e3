#include "src/quant/edited_archive.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "src/io/computed_tensors.hpp"
#include "src/quant/products.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::int64_t rows_at_once = 64;

class edited_tensor final : public io::computed_tensor {
 public:
  edited_tensor(io::archive base, io::tensor_info from, tensor_edit edit)
      : base_(std::move(base)), from_(std::move(from)), edit_(std::move(edit)), cols_(from_.dims.cols()) {
    const std::size_t rank = from_.dims.rank();
    matrix_rows_ = rank > 1 ? from_.dims[rank - 2] : 1;
  }

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    if (edit_.ones) {
      const std::vector<float> row(as_size(count * cols_), 1);
      std::memcpy(out, row.data(), row.size() * sizeof(float));
      return {};
    }
    if (!edit_.row_rotation) return plain(first, count, out);
    // Every row of the result needs all rows of its matrix.
    const std::size_t stride = as_size(cols_) * sizeof(float);
    for (std::int64_t r = first; r < first + count;) {
      FLYWHEEL_TRY(const std::shared_ptr<const std::vector<float>> matrix, rotated(r / matrix_rows_));
      const std::int64_t at = r % matrix_rows_, run = std::min(matrix_rows_ - at, first + count - r);
      std::memcpy(out, matrix->data() + at * cols_, as_size(run) * stride);
      out += as_size(run) * stride;
      r += run;
    }
    return {};
  }

  void release() const noexcept override {
    base_.release(from_);
    const std::lock_guard lock(mutex_);
    matrix_ = nullptr;
  }

 private:
  [[nodiscard]] result<void> plain(std::int64_t first, std::int64_t count, std::byte* out) const {
    const std::size_t stride = row_bytes(from_.type, cols_);
    std::vector<std::byte> stored(as_size(std::min(count, rows_at_once)) * stride);
    std::vector<float> values(as_size(std::min(count, rows_at_once) * cols_)), scratch;
    for (std::int64_t r = first; r < first + count; r += rows_at_once) {
      const std::int64_t n = std::min(rows_at_once, first + count - r);
      FLYWHEEL_CHECK(base_.read(from_, static_cast<std::uint64_t>(r) * stride, {stored.data(), as_size(n) * stride}));
      FLYWHEEL_CHECK(formats::decode(tensor_view(from_.type, {n, cols_}, stored.data()),
                                     std::span(values).first(as_size(n * cols_))));
      for (std::int64_t i = 0; i < n; ++i) {
        float* const row = values.data() + i * cols_;
        if (!edit_.columns.empty())
          for (std::int64_t c = 0; c < cols_; ++c) row[c] *= edit_.columns[as_size(c)];
        if (!edit_.rows.empty())
          for (std::int64_t c = 0; c < cols_; ++c) row[c] *= edit_.rows[as_size((r + i) % matrix_rows_)];
        if (edit_.column_rotation)
          for (std::int64_t c = 0; c < cols_; c += edit_.column_rotation->size())
            edit_.column_rotation->apply(row + c, 1, scratch);
      }
      std::memcpy(out + as_size((r - first) * cols_) * sizeof(float), values.data(),
                  as_size(n * cols_) * sizeof(float));
    }
    return {};
  }

  [[nodiscard]] result<std::shared_ptr<const std::vector<float>>> rotated(std::int64_t index) const {
    const std::lock_guard lock(mutex_);
    if (!matrix_ || have_ != index) {
      auto made = std::make_shared<std::vector<float>>(as_size(matrix_rows_ * cols_));
      FLYWHEEL_CHECK(plain(index * matrix_rows_, matrix_rows_, reinterpret_cast<std::byte*>(made->data())));
      std::vector<float> scratch;
      for (std::int64_t r = 0; r < edit_.row_count; r += edit_.row_rotation->size())
        edit_.row_rotation->apply(made->data() + (edit_.first_row + r) * cols_, cols_, scratch);
      matrix_ = std::move(made);
      have_ = index;
    }
    return matrix_;
  }

  io::archive base_;
  io::tensor_info from_;
  tensor_edit edit_;
  std::int64_t cols_, matrix_rows_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const std::vector<float>> matrix_;  ///< The one rotated last, for reading in pieces.
  mutable std::int64_t have_ = 0;
};

}  // namespace

void tensor_edit::multiply(std::vector<float>& into, std::int64_t size, std::int64_t first,
                           const std::vector<float>& factors) {
  if (into.empty()) into.assign(as_size(size), 1);
  for (std::size_t i = 0; i < factors.size(); ++i) into[as_size(first) + i] *= factors[i];
}

result<const io::tensor_info*> find_tensor(const io::archive& from, std::string_view name) {
  if (const io::tensor_info* found = from.find(name)) return found;
  return error{errc::not_found, "there is no such tensor", std::string(name)};
}

result<std::vector<float>> read_floats(const io::archive& from, const io::tensor_info& tensor) {
  const tensor_reading reading(from, tensor);
  buffer scratch;
  FLYWHEEL_TRY(const std::span<const std::byte> stored, from.bytes(tensor, scratch));
  std::vector<float> values(as_size(tensor.dims.elements()));
  FLYWHEEL_CHECK(formats::decode(tensor_view(tensor.type, tensor.dims, stored.data()), values));
  return values;
}

result<io::archive> edit_archive(const io::archive& base, edited_content content) {
  io::archive_content made;
  made.metadata = base.metadata();
  if (!content.mark.empty()) made.metadata.set(content.mark, true);
  made.sources.assign(base.sources().begin(), base.sources().end());
  made.path = base.path();
  made.file_bytes = base.file_bytes();
  made.files = base.parts();
  const auto computed = std::make_shared<io::computed_source>();
  const auto computed_part = static_cast<std::uint32_t>(made.sources.size());
  const auto add = [&](std::string name, const io::tensor_info& from, tensor_edit edit) -> result<void> {
    if (!formats::find_decoder(from.type))
      return error{errc::unsupported, "no decoder for type " + std::string(to_string(from.type)), from.name};
    io::tensor_info to;
    to.name = std::move(name);
    to.type = dtype::f32;
    to.dims = from.dims;
    to.part = computed_part;
    const std::size_t row = row_bytes(dtype::f32, from.dims.cols());
    to.bytes = static_cast<std::uint64_t>(from.dims.rows()) * row;
    to.offset = computed->add(std::make_unique<edited_tensor>(base, from, std::move(edit)), from.dims.rows(), row);
    made.tensors.push_back(std::move(to));
    return {};
  };
  for (const io::tensor_info& tensor : base.tensors()) {
    if (const auto edit = content.edits.find(tensor.name); edit != content.edits.end()) {
      FLYWHEEL_CHECK(add(tensor.name, tensor, std::move(edit->second)));
      content.edits.erase(edit);
    } else {
      made.tensors.push_back(tensor);
    }
  }
  if (!content.edits.empty()) {
    FLYWHEEL_TRY([[maybe_unused]] const io::tensor_info* missing, find_tensor(base, content.edits.begin()->first));
  }
  for (auto& [name, copy] : content.copies) {
    FLYWHEEL_TRY(const io::tensor_info* from, find_tensor(base, copy.first));
    FLYWHEEL_CHECK(add(name, *from, std::move(copy.second)));
  }
  made.sources.push_back(computed);
  return io::archive::assemble(std::move(made));
}

}  // namespace flywheel::inline v0::quant
