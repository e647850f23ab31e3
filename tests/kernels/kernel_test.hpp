// Clusters this CPU can run, and random data.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/isa.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/formats/half.hpp"
#include "kernels/registry.hpp"
#include "support/catch.hpp"

namespace flywheel::test {

/// Built and detected clusters. Says on standard output, once, which built ones are skipped.
inline const std::vector<kernels::cluster>& runnable_clusters() {
  static const std::vector<kernels::cluster> found = [] {
    std::vector<kernels::cluster> result;
    const isa_report report = detect_isa("generic").value();
    for (const isa_status& status : report.clusters) {
      if (status.built && status.detected)
        result.push_back(kernels::find_cluster(status.name));
      else if (status.built)
        WARN("skipped: this CPU cannot run " << status.name);
    }
    return result;
  }();
  return found;
}

inline bool runnable(kernels::cluster isa) {
  for (const kernels::cluster one : runnable_clusters())
    if (one == isa) return true;
  return false;
}

inline std::string name_of(kernels::cluster isa) {
  return std::string(kernels::cluster_names[static_cast<std::size_t>(isa)]);
}

/// 64-byte aligned room for n objects.
template <class T>
class aligned_array {
 public:
  explicit aligned_array(std::size_t n) : bytes_(buffer::zeros(n * sizeof(T) + 64).value()) {}
  T* data() { return reinterpret_cast<T*>(bytes_.mutable_data()); }
  T& operator[](std::size_t i) { return data()[i]; }

 private:
  buffer bytes_;
};

class random_source {
 public:
  explicit random_source(std::uint32_t seed) : engine_(seed) {}
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(n)); }
  /// About normal, at most `scale` * 6 large.
  float number(float scale = 1) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(engine_()) / 18446744073709551616.0;
    return scale * static_cast<float>(sum);
  }
  std::vector<float> numbers(std::size_t n, float scale = 1) {
    std::vector<float> result(n);
    for (float& x : result) x = number(scale);
    return result;
  }
  std::uint8_t byte() { return static_cast<std::uint8_t>(engine_() >> 32); }

 private:
  std::mt19937_64 engine_;
};

/// Where a format keeps its f16 scales: -1 ends the list.
inline std::vector<int> f16_fields(dtype type) {
  switch (type) {
    case dtype::q4_0:
    case dtype::q5_0:
    case dtype::q8_0:
    case dtype::iq4_nl:
    case dtype::iq4_xs:
    case dtype::iq3_xxs:
    case dtype::iq3_s:
    case dtype::iq2_xxs:
    case dtype::iq2_xs:
    case dtype::iq2_s:
    case dtype::iq1_s:
    case dtype::q1_0:
    case dtype::q2_0:
    case dtype::q8_g128:
    case dtype::q4_g128:
      return {0};
    case dtype::q4_1:
    case dtype::q5_1:
    case dtype::q4_k:
    case dtype::q5_k:
      return {0, 2};
    case dtype::q2_k:
      return {80, 82};
    case dtype::q3_k:
      return {108};
    case dtype::q6_k:
      return {208};
    case dtype::tq1_0:
      return {52};
    case dtype::tq2_0:
      return {64};
    default:
      return {};
  }
}

enum class codes { random, all_zero, all_one };

/// A row of k elements in a format: any codes, sensible scales.
inline std::vector<std::byte> random_row(dtype type, std::int64_t k, random_source& random,
                                         codes fill = codes::random) {
  const dtype_info& facts = *info(type);
  std::vector<std::byte> row(row_bytes(type, k));
  const auto put = [&](std::size_t at, auto value) { std::memcpy(row.data() + at, &value, sizeof value); };
  if (facts.kind == dtype_kind::real) {
    for (std::int64_t i = 0; i < k; ++i) {
      const float x = random.number();
      const std::size_t at = static_cast<std::size_t>(i) * facts.block_bytes;
      if (type == dtype::f16)
        put(at, formats::f32_to_f16(x));
      else if (type == dtype::bf16)
        put(at, static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16));
      else if (type == dtype::f64)
        put(at, static_cast<double>(x));
      else
        put(at, x);
    }
    return row;
  }
  for (std::byte& b : row)
    b = fill == codes::random    ? static_cast<std::byte>(random.byte())
        : fill == codes::all_one ? std::byte{255}
                                 : std::byte{0};
  if (facts.kind == dtype_kind::row) {
    put(0, 0.01f + random.number(0.01f));
    return row;
  }
  for (std::size_t at = 0; at < row.size(); at += facts.block_bytes) {
    for (const int field : f16_fields(type))
      put(at + static_cast<std::size_t>(field), formats::f32_to_f16(0.01f + random.number(0.01f)));
    if (type == dtype::iq1_m) {  // f16 0x2108, 0.01: a nibble above each of four words
      const int nibbles[] = {0x80, 0x00, 0x10, 0x20};
      for (std::size_t i = 0; i < 4; ++i)
        row[at + 49 + 2 * i] = (row[at + 49 + 2 * i] & std::byte{15}) | static_cast<std::byte>(nibbles[i]);
    }
    if (type == dtype::mxfp4) row[at] = static_cast<std::byte>(120 + random.below(12));
    if (type == dtype::nvfp4)
      for (std::size_t i = 0; i < 4; ++i) row[at + i] = static_cast<std::byte>(random.below(0x78));
  }
  return row;
}

}  // namespace flywheel::test
