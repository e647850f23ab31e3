#include "src/model/hugging_face/computed_tensors.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

std::size_t as_size(std::int64_t n) noexcept { return static_cast<std::size_t>(n); }

class gathered final : public io::computed_tensor {
 public:
  gathered(io::archive base, gathered_rows what, dtype type) : base_(std::move(base)), what_(std::move(what)) {
    const io::tensor_info& first = what_.from.front();
    source_rows_ = first.dims.elements() / what_.cols;
    element_ = row_bytes(first.type, 1);
    stride_ = row_bytes(first.type, what_.cols);
    converts_ = type != first.type || what_.value;
    out_stride_ = row_bytes(type, what_.cols);
    type_ = type;
    if (converts_ || what_.column)
      rows_at_once_ = std::max<std::int64_t>(1, (std::int64_t{1} << 20) / static_cast<std::int64_t>(stride_));
  }

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    std::vector<std::byte> stored;
    for (std::int64_t r = 0; r < count;) {
      const std::int64_t at = source_of(first + r);
      std::int64_t run = 1;  // rows that follow each other in one source are read at once
      const std::int64_t most = std::min({count - r, source_rows_ - at % source_rows_, rows_at_once_});
      while (run < most && source_of(first + r + run) == at + run) ++run;
      const io::tensor_info& source = what_.from[as_size(at / source_rows_)];
      const auto offset = static_cast<std::uint64_t>(at % source_rows_) * stride_;
      std::byte* const target = out + as_size(r) * out_stride_;
      if (!converts_ && !what_.column) {
        FLYWHEEL_CHECK(base_.read(source, offset, {target, as_size(run) * stride_}));
      } else {
        stored.resize(as_size(run) * stride_);
        FLYWHEEL_CHECK(base_.read(source, offset, stored));
        FLYWHEEL_CHECK(change(source.type, stored, run, target));
      }
      r += run;
    }
    return {};
  }
  void release() const noexcept override {
    for (const io::tensor_info& source : what_.from) base_.release(source);
  }

 private:
  [[nodiscard]] std::int64_t source_of(std::int64_t r) const { return what_.row ? what_.row(r) : r; }

  [[nodiscard]] result<void> change(dtype stored_type, std::vector<std::byte>& stored, std::int64_t count,
                                    std::byte* out) const {
    if (what_.column) {
      std::vector<std::byte> row(stride_);
      for (std::int64_t r = 0; r < count; ++r) {
        std::byte* const place = stored.data() + as_size(r) * stride_;
        std::memcpy(row.data(), place, stride_);
        for (std::int64_t c = 0; c < what_.cols; ++c)
          std::memcpy(place + as_size(c) * element_, row.data() + as_size(what_.column(c)) * element_, element_);
      }
    }
    if (!converts_) {
      std::memcpy(out, stored.data(), stored.size());
      return {};
    }
    std::vector<float> values(as_size(count * what_.cols));
    FLYWHEEL_CHECK(formats::decode(tensor_view(stored_type, {count, what_.cols}, stored.data()), values));
    if (what_.value) std::transform(values.begin(), values.end(), values.begin(), what_.value);
    formats::find_encoder(type_)(values.data(), count * what_.cols, out);
    return {};
  }

  io::archive base_;
  gathered_rows what_;
  std::int64_t source_rows_ = 0;
  std::int64_t rows_at_once_ = INT64_MAX;  // what is changed passes through memory of its own
  std::size_t element_ = 0, stride_ = 0, out_stride_ = 0;
  bool converts_ = false;
  dtype type_ = dtype::f32;
};

class transposed final : public io::computed_tensor {
 public:
  transposed(io::archive base, transposed_experts what) : base_(std::move(base)), what_(std::move(what)) {}

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    const std::int64_t in = what_.from.dims[1], columns = what_.from.dims[2];
    const std::size_t element = row_bytes(what_.from.type, 1);
    std::vector<std::byte> stored;  // what the rows need of one column of the result
    for (std::int64_t r = 0; r < count;) {
      const std::int64_t matrix = (first + r) / what_.count, at = (first + r) % what_.count;
      const std::int64_t run = std::min(count - r, what_.count - at);
      stored.resize(as_size((run - 1) * what_.step + 1) * element);
      for (std::int64_t i = 0; i < in; ++i) {
        const std::int64_t place = (matrix * in + i) * columns + what_.start + at * what_.step;
        FLYWHEEL_CHECK(base_.read(what_.from, static_cast<std::uint64_t>(place) * element, stored));
        for (std::int64_t j = 0; j < run; ++j)
          std::memcpy(out + as_size((r + j) * in + i) * element, stored.data() + as_size(j * what_.step) * element,
                      element);
      }
      r += run;
    }
    return {};
  }
  void release() const noexcept override { base_.release(what_.from); }

 private:
  io::archive base_;
  transposed_experts what_;
};

class mxfp4 final : public io::computed_tensor {
 public:
  mxfp4(io::archive base, mxfp4_experts what) : base_(std::move(base)), what_(std::move(what)) {}

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    constexpr std::size_t code_bytes = 16;
    const std::int64_t n = what_.blocks.dims[1];
    const std::size_t blocks = as_size(what_.blocks.dims[2]);
    std::vector<std::byte> codes(blocks * code_bytes), scales(blocks);
    for (std::int64_t r = first; r < first + count; ++r) {
      const auto row = static_cast<std::uint64_t>(r / what_.count * n + what_.start + r % what_.count * what_.step);
      FLYWHEEL_CHECK(base_.read(what_.blocks, row * codes.size(), codes));
      FLYWHEEL_CHECK(base_.read(what_.scales, row * blocks, scales));
      for (std::size_t b = 0; b < blocks; ++b) {
        *out++ = scales[b];
        const std::byte* const pairs = codes.data() + b * code_bytes;
        const auto code = [&](std::size_t i) {
          return (i % 2 == 0 ? pairs[i / 2] : pairs[i / 2] >> 4) & std::byte{15};
        };
        for (std::size_t j = 0; j < code_bytes; ++j) *out++ = code(j) | code(j + code_bytes) << 4;
      }
    }
    return {};
  }
  void release() const noexcept override {
    base_.release(what_.blocks);
    base_.release(what_.scales);
  }

 private:
  io::archive base_;
  mxfp4_experts what_;
};

}  // namespace

std::unique_ptr<io::computed_tensor> make_gathered(io::archive base, gathered_rows what, dtype type) {
  return std::make_unique<gathered>(std::move(base), std::move(what), type);
}
std::unique_ptr<io::computed_tensor> make_transposed(io::archive base, transposed_experts what) {
  return std::make_unique<transposed>(std::move(base), std::move(what));
}
std::unique_ptr<io::computed_tensor> make_mxfp4(io::archive base, mxfp4_experts what) {
  return std::make_unique<mxfp4>(std::move(base), std::move(what));
}

}  // namespace flywheel::inline v0::hugging_face
