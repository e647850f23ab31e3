// Portable product: f32 activations, weights decoded by the reference codec panel by panel unless they are f32.
#include <cstring>

#include "flywheel/formats/formats.hpp"
#include "kernels/declare.hpp"

namespace flywheel::inline v0::kernels {
namespace {

constexpr std::int64_t panel_cols = 8;
constexpr std::int64_t tile_rows = 4;
/// Sums run over 256 products each and are then added up in order: a fixed order, and a smaller rounding error.
constexpr std::int64_t chunk = 256;
/// Rows that share one decoding of a chunk.
constexpr std::int64_t row_group = 64;

constexpr std::size_t round_up(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// sums[r][c] += sum over k of x[k][r] * w[k][c]
template <int R>
void multiply_chunk(const float* x, const float* w, std::int64_t length, float* sums) {
  float acc[R][panel_cols] = {};
  for (std::int64_t k = 0; k < length; ++k, x += R, w += panel_cols)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < panel_cols; ++c) acc[r][c] += x[r] * w[c];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < panel_cols; ++c) sums[r * panel_cols + c] += acc[r][c];
}

/// Panel: chunk after chunk of up to 256 elements of K; a chunk of a plain type is [k][panel_cols], that of a block
/// format the file's blocks, [panel_cols][blocks].
template <dtype Weight>
struct product {
  static constexpr dtype_info facts = *info(Weight);
  static constexpr bool plain = facts.block_elements == 1;

  static std::size_t bytes_of(std::int64_t elements) {
    return static_cast<std::size_t>(elements) / facts.block_elements * facts.block_bytes;
  }

  static std::size_t panel_bytes(std::int64_t k) { return round_up(bytes_of(k) * panel_cols); }

  static void pack(const std::byte* rows, std::size_t row_stride, std::int32_t cols, std::int64_t k, std::byte* panel) {
    for (std::int64_t k0 = 0; k0 < k; k0 += chunk) {
      const std::int64_t length = least(chunk, k - k0);
      const std::size_t size = bytes_of(length);
      for (std::int64_t c = 0; c < panel_cols; ++c) {
        const std::byte* from = rows + static_cast<std::size_t>(c) * row_stride + bytes_of(k0);
        if constexpr (plain) {
          for (std::int64_t i = 0; i < length; ++i) {
            std::byte* to = panel + static_cast<std::size_t>(i * panel_cols + c) * facts.block_bytes;
            if (c < cols)
              std::memcpy(to, from + static_cast<std::size_t>(i) * facts.block_bytes, facts.block_bytes);
            else
              std::memset(to, 0, facts.block_bytes);
          }
        } else if (c < cols) {
          std::memcpy(panel + static_cast<std::size_t>(c) * size, from, size);
        } else {
          // Whatever a block of zero bytes decodes to: such columns are never stored.
          std::memset(panel + static_cast<std::size_t>(c) * size, 0, size);
        }
      }
      panel += size * panel_cols;
    }
  }

  /// One chunk of a panel as f32 [length][panel_cols]; `tile` and `column` are room for it.
  static const float* decode(const std::byte* from, std::int64_t length, formats::decode_fn decoder, float* tile,
                             float* column) {
    if constexpr (Weight == dtype::f32) {
      return reinterpret_cast<const float*>(from);
    } else if constexpr (plain) {
      decoder(from, length * panel_cols, tile);
    } else {
      for (std::int64_t c = 0; c < panel_cols; ++c, from += bytes_of(length)) {
        decoder(from, length, column);
        for (std::int64_t i = 0; i < length; ++i) tile[i * panel_cols + c] = column[i];
      }
    }
    return tile;
  }

  /// Tiles of 4 rows [k][4]; the last one has the rows that are left, [k][rows].
  static std::size_t prepared_bytes(std::int64_t m, std::int64_t k) {
    return round_up(static_cast<std::size_t>(m * k) * sizeof(float));
  }

  static void prepare(const float* x, std::int64_t x_stride, std::int64_t row_begin, std::int64_t row_end,
                      std::int64_t k, std::byte* out) {
    for (std::int64_t row = row_begin; row < row_end; row += tile_rows) {
      float* tile = reinterpret_cast<float*>(out) + row * k;
      const std::int64_t rows = least(tile_rows, row_end - row);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < k; ++i) tile[i * rows + r] = x[(row + r) * x_stride + i];
    }
  }

  static void run(const matmul_args& args) {
    alignas(64) float sums[row_group * panel_cols];
    alignas(64) float tile[Weight == dtype::f32 ? 1 : chunk * panel_cols];
    float column[plain ? 1 : chunk];
    const formats::decode_fn decoder = Weight == dtype::f32 ? nullptr : formats::find_decoder(Weight);
    const float* prepared = reinterpret_cast<const float*>(args.prepared);
    for (std::int64_t col = 0; col < args.n; col += panel_cols) {
      const std::byte* panel = args.panels + static_cast<std::size_t>(col / panel_cols) * panel_bytes(args.k);
      for (std::int64_t begin = args.row_begin; begin < args.row_end; begin += row_group) {
        const std::int64_t end = least(begin + row_group, args.row_end);
        std::memset(sums, 0, sizeof sums);
        for (std::int64_t k0 = 0; k0 < args.k; k0 += chunk) {
          const std::int64_t length = least(chunk, args.k - k0);
          const float* w = decode(panel + bytes_of(k0) * panel_cols, length, decoder, tile, column);
          for (std::int64_t row = begin; row < end; row += tile_rows) {
            const std::int64_t rows = least(tile_rows, end - row);
            const float* x = prepared + row * args.k + k0 * rows;
            float* to = sums + (row - begin) * panel_cols;
            switch (rows) {
              case 1:
                multiply_chunk<1>(x, w, length, to);
                break;
              case 2:
                multiply_chunk<2>(x, w, length, to);
                break;
              case 3:
                multiply_chunk<3>(x, w, length, to);
                break;
              default:
                multiply_chunk<4>(x, w, length, to);
                break;
            }
          }
        }
        store(args, begin, end, col, sums);
      }
    }
  }

  static void store(const matmul_args& args, std::int64_t begin, std::int64_t end, std::int64_t col,
                    const float* sums) {
    const std::int64_t cols = least(panel_cols, args.n - col);
    const matmul_epilogue& epilogue = args.epilogue;
    for (std::int64_t row = begin; row < end; ++row, sums += panel_cols) {
      const std::int64_t i = row - args.row_begin;
      float* y = args.y + i * args.y_stride + col;
      for (std::int64_t c = 0; c < cols; ++c) {
        float value = sums[c];
        if (epilogue.bias) value += epilogue.bias[col + c];
        if (epilogue.residual) value += epilogue.residual[i * epilogue.residual_stride + col + c];
        y[c] = value;
      }
    }
  }
};

}  // namespace

#define FLYWHEEL_MATMUL_GENERIC(type) FLYWHEEL_MATMUL_DEFINE(matmul_f32_##type##_4x8_generic, product<dtype::type>)
FLYWHEEL_MATMUL_GENERIC(f32)
FLYWHEEL_MATMUL_GENERIC(f16)
FLYWHEEL_MATMUL_GENERIC(bf16)
FLYWHEEL_MATMUL_GENERIC(f64)
FLYWHEEL_MATMUL_GENERIC(q8_0)
FLYWHEEL_MATMUL_GENERIC(q4_0)
FLYWHEEL_MATMUL_GENERIC(q4_k)
FLYWHEEL_MATMUL_GENERIC(q5_k)
FLYWHEEL_MATMUL_GENERIC(q6_k)
FLYWHEEL_MATMUL_GENERIC(q5_0)
FLYWHEEL_MATMUL_GENERIC(iq4_nl)
FLYWHEEL_MATMUL_GENERIC(iq4_xs)
FLYWHEEL_MATMUL_GENERIC(mxfp4)
FLYWHEEL_MATMUL_GENERIC(q2_k)
FLYWHEEL_MATMUL_GENERIC(q3_k)
FLYWHEEL_MATMUL_GENERIC(q4_1)
FLYWHEEL_MATMUL_GENERIC(q5_1)
FLYWHEEL_MATMUL_GENERIC(nvfp4)
FLYWHEEL_MATMUL_GENERIC(tq1_0)
FLYWHEEL_MATMUL_GENERIC(tq2_0)
FLYWHEEL_MATMUL_GENERIC(q1_0)
FLYWHEEL_MATMUL_GENERIC(q2_0)
FLYWHEEL_MATMUL_GENERIC(iq2_xxs)
FLYWHEEL_MATMUL_GENERIC(iq2_xs)
FLYWHEEL_MATMUL_GENERIC(iq2_s)
FLYWHEEL_MATMUL_GENERIC(iq3_xxs)
FLYWHEEL_MATMUL_GENERIC(iq3_s)
FLYWHEEL_MATMUL_GENERIC(iq1_s)
FLYWHEEL_MATMUL_GENERIC(iq1_m)

}  // namespace flywheel::inline v0::kernels
