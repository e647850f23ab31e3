// Rows of any scalar format, for any vector type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flywheel/core/dtype.hpp"
#include "flywheel/formats/encoding/block_fit.hpp"

namespace flywheel::inline v0::formats::encoding {

/// Encodes n values (whole blocks, or one row of a dtype of kind row).
template <class S, dtype Type>
void encode_values(const float* x, const weighting& how, std::int64_t n, rounding method, std::uint8_t* out) {
  using F = scheme<S, Type>;
  using V = lanes<S>;
  if constexpr (F::group == 0) {
    using L = typename F::levels;
    const row_view<S> row(x, n, how);
    const V d = fit_scale<S, L, stored_exactly<S>>(row, method).d;
    const V id = inverse(d);
    alignas(64) float scale[S::width];
    d.store(scale);
    __builtin_memcpy(out, scale, 4);  // little-endian, as everything that reads files assumes
    out += row_header_bytes;
    // A block of 64 codes at a time: a multiple of every vector, and even.
    alignas(64) std::uint8_t codes[64];
    constexpr std::int64_t step = 64 / S::width, per_byte = info(Type)->block_elements;
    for (std::int64_t i = 0; i < row.size; i += step) {
      const std::int64_t end = i + step < row.size ? i + step : row.size;
      for (std::int64_t k = i; k < end; ++k)
        S::store_low_bytes(codes + (k - i) * S::width, S::to_words(L::code(row.x(k) * id).v));
      const std::int64_t left = n - i * S::width;
      F::put(codes, left < 64 ? left : 64, out + i * S::width / per_byte);
    }
  } else {
    constexpr int elements = F::group * F::groups;
    constexpr std::size_t bytes = info(Type)->block_bytes;
    static_assert(elements == info(Type)->block_elements);
    using fit_type = block_fit<S, Type>;
    using T = typename fit_type::T;
    T data;
    fit_type fit;
    alignas(64) std::uint8_t codes[F::group * T::count];
    std::uint8_t block[elements];
    for (std::int64_t done = 0; done < n; done += std::int64_t{elements} * T::blocks) {
      const std::int64_t left = (n - done) / elements;
      const int blocks = left < T::blocks ? static_cast<int>(left) : T::blocks;
      data.load(x + done, blocks * F::groups, how, done);
      fit.fit(data, method);
      fit.round(data, codes);
      for (int b = 0; b < blocks; ++b, out += bytes) {
        for (int g = 0; g < F::groups; ++g)
          for (int i = 0; i < F::group; ++i) block[g * F::group + i] = codes[i * T::count + b * F::groups + g];
        F::pack(fit.stored[b], block, out);
      }
    }
  }
}

/// Whether `Type` has a scheme.
template <class S, dtype Type>
inline constexpr bool has_scheme = requires { sizeof(scheme<S, Type>); };

}  // namespace flywheel::inline v0::formats::encoding
