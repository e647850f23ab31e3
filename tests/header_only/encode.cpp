// A program that quantizes without the library. Exit code 1 and a line per format where the error is not what search
// must reach.
#include <cmath>
#include <cstdio>
#include <vector>

#include "flywheel/formats/codec.hpp"
#include "flywheel/formats/formats.inc"
#include "flywheel/quant/encode.hpp"

namespace fw = flywheel;

namespace {

template <fw::dtype Type, class Lanes = fw::formats::encoding::portable_lanes>
bool round_trip(double allowed) {
  constexpr std::int64_t n = 512;
  std::vector<float> x(n), y(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = std::sin(0.7F * static_cast<float>(i * i));
  std::vector<std::byte> row(fw::info(Type)->header_bytes() +
                             n / fw::info(Type)->block_elements * fw::info(Type)->block_bytes);
  fw::quant::encode_row<Type, Lanes>(x.data(), nullptr, n, fw::quant::rounding::search, row.data());
  fw::formats::decode_blocks<Type>(row.data(), n, y.data());
  double error = 0, power = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double e = static_cast<double>(x[i] - y[i]);
    error += e * e;
    power += static_cast<double>(x[i] * x[i]);
  }
  const double relative = std::sqrt(error / power);
  const bool good = relative <= allowed;
  if (!good) std::printf("%s: relative error %g, allowed %g\n", fw::info(Type)->name.data(), relative, allowed);
  return good;
}

}  // namespace

int main() {
  static_assert(fw::quant::scalar_format<fw::dtype::q4_k> && !fw::quant::scalar_format<fw::dtype::f16>);
  bool good = round_trip<fw::dtype::q4_0>(0.08);
  good &= round_trip<fw::dtype::q4_0, fw::formats::encoding::scalar_lanes>(0.08);
  good &= round_trip<fw::dtype::q4_k>(0.07);
  good &= round_trip<fw::dtype::q4_k, fw::formats::encoding::scalar_lanes>(0.07);
  good &= round_trip<fw::dtype::q6_k>(0.02);
  good &= round_trip<fw::dtype::q8_channel>(0.006);
  good &= round_trip<fw::dtype::mxfp4>(0.15);
  return good ? 0 : 1;
}
