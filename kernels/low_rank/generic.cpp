#include <cstring>

#include "kernels/declare.hpp"
#include "kernels/low_rank/low_rank.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {
namespace {

template <dtype T>
float factor(const std::byte* p, std::int64_t i) {
  if constexpr (T == dtype::f32) {
    return reinterpret_cast<const float*>(p)[i];
  } else {
    std::uint16_t half;
    std::memcpy(&half, p + 2 * i, 2);
    return T == dtype::f16 ? f16_to_f32(half) : bf16_to_f32(half);
  }
}

/// Sixteen chains of multiply-adds, which compilers vectorise.
template <dtype T>
void project_as(const project_args& p) {
  constexpr std::int64_t chains = 16;
  const std::size_t stride = low_rank_stride(T, p.k);
  for (std::int64_t j = 0; j < p.ranks; ++j) {
    const std::byte* a = p.a + static_cast<std::size_t>(j) * stride;
    for (std::int64_t r = 0; r < p.rows; ++r) {
      const float* x = p.x + r * p.x_stride;
      float sums[chains] = {};
      std::int64_t i = 0;
      for (; i + chains <= p.k; i += chains)
        for (std::int64_t l = 0; l < chains; ++l) sums[l] = multiply_add(factor<T>(a, i + l), x[i + l], sums[l]);
      for (std::int64_t l = 0; i + l < p.k; ++l) sums[l] = multiply_add(factor<T>(a, i + l), x[i + l], sums[l]);
      float total = 0;
      for (const float sum : sums) total += sum;
      p.u[r * p.u_stride + j] = total * p.scale;
    }
  }
}

template <dtype T>
void expand_as(const expand_args& e) {
  for (std::int64_t c = e.begin; c < e.end;) {
    const std::int64_t lane = c % low_rank_block, left = low_rank_block - lane;
    const std::int64_t n = e.end - c < left ? e.end - c : left;
    const std::int64_t first = c / low_rank_block * e.rank * low_rank_block + lane;
    for (std::int64_t r = 0; r < e.rows; ++r) {
      float* y = e.y + r * e.y_stride + c - e.begin;
      for (std::int64_t j = 0; j < e.rank; ++j)
        for (std::int64_t l = 0; l < n; ++l)
          y[l] = multiply_add(factor<T>(e.b, first + j * low_rank_block + l), e.u[r * e.u_stride + j], y[l]);
    }
    c += n;
  }
}

}  // namespace

void project_generic(const project_args& p) {
  if (p.type == dtype::f16)
    project_as<dtype::f16>(p);
  else if (p.type == dtype::bf16)
    project_as<dtype::bf16>(p);
  else
    project_as<dtype::f32>(p);
}

void expand_generic(const expand_args& e) {
  if (e.type == dtype::f16)
    expand_as<dtype::f16>(e);
  else if (e.type == dtype::bf16)
    expand_as<dtype::bf16>(e);
  else
    expand_as<dtype::f32>(e);
}

}  // namespace flywheel::inline v0::kernels
