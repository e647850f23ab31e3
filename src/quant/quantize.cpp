#include "flywheel/quant/quantize.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/encoding/tile.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/quant/grid.hpp"
#include "kernels/registry.hpp"
#include "src/quant/codebooks.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr std::int64_t slice_elements = std::int64_t{1} << 22;  ///< Between two reports of progress.
constexpr std::int64_t grain_elements = std::int64_t{1} << 14;  ///< What a worker takes at a time: 64 KiB of f32.

bool is_plain(dtype type) noexcept { return type == dtype::f32 || type == dtype::f16 || type == dtype::bf16; }

const codebook_format* find_codebook(dtype type) noexcept {
  for (const codebook_format& one : codebook_formats())
    if (one.type == type) return &one;
  return nullptr;
}

std::string place(std::int64_t row, std::int64_t col) {
  return "[" + std::to_string(row) + ", " + std::to_string(col) + "]";
}

/// As short as it can be said.
std::string text_of(float value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

using formats::encoding::weighting;

/// One for each row of importance [matrices, cols] or [cols]; none for none.
result<std::vector<weighting>> check_importance(std::span<const float> values, std::int64_t matrices,
                                                std::int64_t cols) {
  std::vector<weighting> out;
  if (values.empty()) return out;
  const auto size = static_cast<std::int64_t>(values.size());
  if (size != cols && size != matrices * cols)
    return error{errc::invalid_argument,
                 "importance must have " + std::to_string(cols) + " numbers, one per column" +
                     (matrices > 1 ? ", or as many for each of " + std::to_string(matrices) + " matrices" : "") +
                     ", not " + std::to_string(size),
                 "importance"};
  for (std::int64_t first = 0; first < size; first += cols) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const float one = values[static_cast<std::size_t>(first + c)];
      if (!std::isfinite(one) || one < 0)
        return error{errc::invalid_argument,
                     "importance must be finite and not negative: " + place(first / cols, c) + " is " + text_of(one),
                     "importance"};
    }
    out.push_back(formats::encoding::weigh<formats::encoding::portable_lanes>(values.data() + first, cols));
  }
  return out;
}

/// Where rows come from: f32 in place, or anything with a decoder.
struct row_source {
  dtype type;
  const std::byte* data;
  std::int64_t cols;
  kernels::to_f32_fn decode;

  [[nodiscard]] bool in_place() const noexcept {
    return type == dtype::f32 && reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0;
  }
  /// Rows [first, first + n); `room` [n, cols] is for its use, unless they are read in place.
  const float* read(std::int64_t first, std::int64_t n, float* room) const {
    const std::size_t stride = row_bytes(type, cols);
    const std::byte* const from = data + static_cast<std::size_t>(first) * stride;
    if (in_place()) return reinterpret_cast<const float*>(from);
    for (std::int64_t r = 0; r < n; ++r) decode(from + static_cast<std::size_t>(r) * stride, cols, room + r * cols);
    return room;
  }
};

/// One tensor on its way: rows are independent, so the bytes do not depend on who computes them.
class rows_encoder {
 public:
  rows_encoder(const row_source& from, const std::vector<weighting>& importance, std::int64_t rows_per_matrix,
               const recipe& how, const context& ctx, std::byte* out)
      : from_(from),
        importance_(importance),
        rows_per_matrix_(rows_per_matrix),
        how_(how),
        pool_(ctx.executor()),
        kernels_(kernels::select(kernels::find_cluster(ctx.isa().selected))),
        codebook_(find_codebook(how.type)),
        out_(out),
        grain_(std::max<std::int64_t>(1, grain_elements / std::max<std::int64_t>(1, from.cols))),
        decoded_(from.in_place() ? 0 : grain_ * from.cols),
        rooms_(pool_.concurrency(),
               std::vector<float>(static_cast<std::size_t>(decoded_ + (codebook_ ? codebook_->scratch : 0)))) {}

  /// All `rows` of a tensor or piece, whose first is called first_row.
  result<void> run(std::int64_t rows, std::int64_t first_row, const control& control) {
    const std::int64_t slice = std::max<std::int64_t>(1, slice_elements / from_.cols);
    auto reported = std::chrono::steady_clock::now();
    for (std::int64_t begin = 0; begin < rows; begin += slice) {
      const std::int64_t end = std::min(rows, begin + slice);
      run_slice(begin, end, control);
      if (bad_ < rows * from_.cols) return bad_value(first_row);
      if (control.stopped()) return error{errc::cancelled, "quantizing was cancelled", {}};
      const auto now = std::chrono::steady_clock::now();
      if (control.progress && (now - reported > std::chrono::milliseconds(50) || end == rows)) {
        control.progress(static_cast<std::uint64_t>(end), static_cast<std::uint64_t>(rows), "quantizing");
        reported = now;
      }
    }
    return {};
  }

 private:
  /// On return bad_ says where the first unusable value is.
  void run_slice(std::int64_t begin, std::int64_t end, const control& control) {
    const std::int64_t grains = (end - begin + grain_ - 1) / grain_;
    const auto workers =
        static_cast<unsigned>(std::min<std::int64_t>(grains, static_cast<std::int64_t>(rooms_.size())));
    std::atomic<std::int64_t> next{0};
    pool_.run(workers, [&](unsigned worker) {
      for (;;) {
        const std::int64_t first = begin + next.fetch_add(1, std::memory_order_relaxed) * grain_;
        if (first >= end || first * from_.cols > bad_.load(std::memory_order_relaxed) || control.stopped()) return;
        encode(first, std::min(grain_, end - first), rooms_[worker].data());
      }
    });
  }

  [[nodiscard]] error bad_value(std::int64_t first_row) const {
    const std::int64_t row = bad_ / from_.cols, col = bad_ % from_.cols;
    std::vector<float> room(static_cast<std::size_t>(from_.cols));
    const float value = from_.read(row, 1, room.data())[col];
    const std::string where = place(first_row + row, col);
    if (std::isfinite(value))
      return {errc::invalid_argument,
              "the value at " + where + " is " + text_of(value) + ", beyond the range of " +
                  std::string(to_string(how_.type)),
              "tensor"};
    return {errc::invalid_argument,
            "the value at " + where + " is " + (std::isnan(value) ? "not a number" : "infinite") +
                ": such a tensor cannot be quantized",
            "tensor"};
  }

  /// The largest value that stays finite, as an integer: those sort like floats without their sign.
  [[nodiscard]] static std::int32_t largest_bits(dtype type) noexcept {
    if (type == dtype::f16) return std::bit_cast<std::int32_t>(65520.0F) - 1;
    if (type == dtype::bf16) return 0x7F7F7FFF;
    return std::bit_cast<std::int32_t>(std::numeric_limits<float>::max());
  }

  /// room: rows, and what a codebook format needs.
  void encode(std::int64_t first, std::int64_t n, float* room) {
    const std::int64_t cols = from_.cols;
    const float* const x = from_.read(first, n, room);
    // Any compiler has vectors for the sign of a difference of integers.
    const std::int32_t largest = largest_bits(how_.type);
    const auto room_left = [&](std::int64_t i) { return largest - (std::bit_cast<std::int32_t>(x[i]) & 0x7FFFFFFF); };
    std::int32_t least = 0;
    for (std::int64_t i = 0; i < n * cols; ++i) least |= room_left(i);
    if (least < 0) {
      std::int64_t at = 0;
      while (room_left(at) >= 0) ++at;
      at += first * cols;
      for (std::int64_t old = bad_; at < old && !bad_.compare_exchange_weak(old, at);) {
      }
      return;
    }
    const std::size_t stride = row_bytes(how_.type, cols);
    kernels::quantize_args args{how_.type, how_.method, x, 0, cols, nullptr, 1, nullptr};
    for (std::int64_t r = 0; r < n; r += args.rows) {
      // As many rows as belong to one matrix.
      const std::int64_t matrix = (first + r) / rows_per_matrix_;
      args.rows = std::min(n - r, (matrix + 1) * rows_per_matrix_ - first - r);
      args.x = x + r * cols;
      args.out = out_ + static_cast<std::size_t>(first + r) * stride;
      if (!importance_.empty()) {
        const weighting& how = importance_[importance_.size() > 1 ? static_cast<std::size_t>(matrix) : 0];
        args.importance = how.importance;
        args.importance_factor = how.factor;
      }
      if (codebook_ != nullptr)
        codebook_->encode(args, kernels_, room + decoded_);
      else if (how_.type == dtype::f16 && reinterpret_cast<std::uintptr_t>(args.out) % alignof(std::uint16_t) == 0)
        kernels_.f32_to_f16(args.x, args.rows * cols, reinterpret_cast<std::uint16_t*>(args.out));
      else if (is_plain(how_.type))
        formats::find_encoder(how_.type)(args.x, args.rows * cols, args.out);
      else
        kernels_.quantize(args);
    }
  }

  const row_source& from_;
  const std::vector<weighting>& importance_;
  std::int64_t rows_per_matrix_;
  const recipe& how_;
  executor& pool_;
  const kernels::kernel_set& kernels_;
  const codebook_format* codebook_;
  std::byte* out_;
  std::int64_t grain_;
  std::int64_t decoded_;  ///< How much of a room is for decoded rows.
  std::vector<std::vector<float>> rooms_;
  std::atomic<std::int64_t> bad_{std::numeric_limits<std::int64_t>::max()};
};

result<void> check_type(dtype type, std::int64_t cols) {
  if (!can_quantize(type))
    return error{errc::unsupported, "there is no encoder for the type " + std::string(to_string(type)), "type"};
  const dtype_info& facts = *info(type);
  if (cols % facts.block_elements != 0)
    return error{errc::invalid_argument,
                 "rows of " + std::string(facts.name) + " must be a multiple of " +
                     std::to_string(facts.block_elements) + " columns, not " + std::to_string(cols),
                 "type"};
  return {};
}

}  // namespace

bool can_quantize(dtype type) noexcept {
  return is_plain(type) || find_grid(type) != nullptr || find_codebook(type) != nullptr;
}

bool wants_importance(dtype type) noexcept {
  const codebook_format* found = find_codebook(type);
  return found != nullptr && found->wants_importance;
}

result<tensor> quantize(const tensor_view& from, const recipe& how, const context& ctx, const control& control) {
  return detail::guarded([&]() -> result<tensor> {
    FLYWHEEL_TRY(const context used, ctx.or_default());
    const std::int64_t cols = from.dims.cols(), rows = from.dims.rows();
    FLYWHEEL_CHECK(check_type(how.type, cols));
    if (!from.dense()) return error{errc::invalid_argument, "only dense tensors can be quantized", "tensor"};
    const dtype_info* facts = info(from.type);
    const kernels::cluster isa = kernels::find_cluster(used.isa().selected);
    const row_source source{from.type, from.data, cols, facts ? kernels::find_to_f32(isa, from.type) : nullptr};
    if (source.decode == nullptr)
      return error{errc::unsupported, "there is no decoder for the type " + std::string(to_string(from.type)),
                   "tensor"};
    if (cols % facts->block_elements != 0)
      return error{errc::invalid_argument, "the tensor has rows that are no whole blocks", "tensor"};
    const std::size_t rank = from.dims.rank();
    const std::int64_t in_matrix = rank >= 2 ? from.dims[rank - 2] : 1;
    const std::int64_t matrices = in_matrix > 0 ? rows / in_matrix : 0;
    FLYWHEEL_TRY(const std::vector<weighting> importance, check_importance(how.importance, matrices, cols));
    FLYWHEEL_TRY(const std::size_t bytes, dense_bytes(how.type, from.dims));
    FLYWHEEL_TRY(buffer room, buffer::allocate(bytes, used.memory()));
    FLYWHEEL_TRY(tensor out, tensor::adopt(how.type, from.dims, std::move(room)));
    if (rows == 0) return out;
    FLYWHEEL_CHECK(rows_encoder(source, importance, in_matrix, how, used, out.view().data).run(rows, 0, control));
    return out;
  });
}

result<void> quantize_rows(std::span<const float> rows, std::int64_t cols, std::int64_t first_row, const recipe& how,
                           std::span<std::byte> out, const context& ctx, const control& control) {
  return detail::guarded([&]() -> result<void> {
    FLYWHEEL_TRY(const context used, ctx.or_default());
    FLYWHEEL_CHECK(check_type(how.type, cols));
    const auto size = static_cast<std::int64_t>(rows.size());
    if (cols <= 0 || size % cols != 0)
      return error{errc::invalid_argument,
                   std::to_string(size) + " values are no whole rows of " + std::to_string(cols), "rows"};
    const std::int64_t n = size / cols;
    if (out.size() != static_cast<std::size_t>(n) * row_bytes(how.type, cols))
      return error{errc::invalid_argument,
                   "the output must have " + std::to_string(static_cast<std::size_t>(n) * row_bytes(how.type, cols)) +
                       " bytes, not " + std::to_string(out.size()),
                   "out"};
    FLYWHEEL_TRY(const std::vector<weighting> importance, check_importance(how.importance, 1, cols));
    if (n == 0) return {};
    const row_source source{dtype::f32, std::as_bytes(rows).data(), cols, formats::find_decoder(dtype::f32)};
    return rows_encoder(source, importance, n, how, used, out.data()).run(n, first_row, control);
  });
}

}  // namespace flywheel::inline v0::quant
