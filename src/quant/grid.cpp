#include "flywheel/quant/grid.hpp"

#include <array>
#include <cstring>

#include "flywheel/formats/encoding/row.hpp"
#include "flywheel/formats/iq4_nl.hpp"
#include "flywheel/formats/mxfp4.hpp"
#include "flywheel/formats/nvfp4.hpp"
#include "flywheel/quant/encode.hpp"

namespace flywheel::inline v0::quant {
namespace {

using encoding_lanes = formats::encoding::portable_lanes;
using formats::encoding::scaling;

/// A format as a grid: the encoder's own fit and packing, one block at a time.
template <dtype Type>
struct grid_of {
  using F = formats::encoding::scheme<encoding_lanes, Type>;
  using L = typename F::levels;

  static constexpr std::array<float, L::count> make_levels() {
    std::array<float, L::count> out{};
    for (int i = 0; i < L::count; ++i) out[static_cast<std::size_t>(i)] = L::at(i);
    return out;
  }
  static constexpr std::array<float, L::count> levels = make_levels();

  static void fit(const float* x, const float* weights, std::int64_t n, rounding method, block_grid& grid) {
    const formats::encoding::weighting how = formats::encoding::weigh<encoding_lanes>(weights, n);
    if constexpr (F::group == 0) {
      const formats::encoding::row_view<encoding_lanes> row(x, n, how);
      grid.scale[0] =
          formats::encoding::fit_scale<encoding_lanes, L, formats::encoding::stored_exactly<encoding_lanes>>(row,
                                                                                                             method)
              .d.first();
      grid.minimum[0] = 0;
      std::memcpy(grid.stored.data(), &grid.scale[0], sizeof(float));
    } else {
      using fit_type = formats::encoding::block_fit<encoding_lanes, Type>;
      typename fit_type::T data;
      fit_type fitted;
      data.load(x, F::groups, how, 0);
      fitted.fit(data, method);
      for (std::size_t g = 0; g < F::groups; ++g) {
        grid.scale[g] = fitted.scale[g];
        grid.minimum[g] = -fitted.offset[g];
      }
      static_assert(sizeof fitted.stored[0] <= sizeof grid.stored);
      std::memcpy(grid.stored.data(), &fitted.stored[0], sizeof fitted.stored[0]);
    }
  }

  static void pack(const block_grid& grid, const std::uint8_t* codes, std::int64_t n, std::byte* out) {
    auto* const bytes = reinterpret_cast<std::uint8_t*>(out);
    if constexpr (F::group == 0) {
      std::memcpy(bytes, grid.stored.data(), row_header_bytes);
      F::put(codes, n, bytes + row_header_bytes);
    } else {
      formats::encoding::fields stored;
      std::memcpy(&stored, grid.stored.data(), sizeof stored);
      F::pack(stored, codes, bytes);
    }
  }

  static constexpr grid_format format{
      Type, F::group* F::groups, F::group, levels, F::kind == scaling::line || F::kind == scaling::lines, &fit, &pack};
};

// What encoders say again, because every instruction set needs a copy of its own, is what decoders say.
constexpr bool encoders_agree() {
  using formats::codec;
  using mxfp4 = grid_of<dtype::mxfp4>;
  using nvfp4 = grid_of<dtype::nvfp4>;
  for (std::size_t i = 0; i < 16; ++i) {
    if (grid_of<dtype::iq4_nl>::levels[i] != static_cast<float>(formats::iq4_levels[i])) return false;
    if (mxfp4::levels[i] != static_cast<float>(formats::fp4_levels[i])) return false;
  }
  for (int i = 0; i <= mxfp4::F::largest_code; ++i)
    if (mxfp4::F::scale_of(i) != codec<dtype::mxfp4>::scale(static_cast<std::uint8_t>(i))) return false;
  for (int i = 0; i <= nvfp4::F::largest_code; ++i)
    if (nvfp4::F::scale_of(i) != codec<dtype::nvfp4>::half_scale(static_cast<std::uint8_t>(i))) return false;
  return true;
}
static_assert(encoders_agree());

template <dtype Type>
const grid_format* grid_or_null() noexcept {
  if constexpr (scalar_format<Type>)
    return &grid_of<Type>::format;
  else
    return nullptr;
}

}  // namespace

const grid_format* find_grid(dtype type) noexcept {
  switch (type) {
#define FLYWHEEL_DTYPE(name, id, display, elements, bytes, kind) \
  case dtype::name:                                              \
    return grid_or_null<dtype::name>();
#include "flywheel/core/dtypes.inc"
#undef FLYWHEEL_DTYPE
  }
  return nullptr;
}

}  // namespace flywheel::inline v0::quant
