// A simulated NPU as tests use it: through its table, with what they would write again and again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/device/simulator.hpp"
#include "support/catch.hpp"

namespace flywheel::test {

inline constexpr const char* simulator_profiles[] = {"hexagon-sim", "xdna-sim"};

inline flywheel_matmul matmul(std::int64_t rows, std::int64_t n, std::int64_t k, flywheel_weight_format format,
                              std::uint32_t input = 0) {
  return {sizeof(flywheel_matmul), FLYWHEEL_OP_MATMUL, rows, n, k, format, input};
}

inline std::int64_t groups_of(const flywheel_matmul& op) {
  return op.weights.group == 0 ? 1 : (op.k + op.weights.group - 1) / op.weights.group;
}

/// Operands of one product.
struct operands {
  std::vector<std::int8_t> x, w;
  std::vector<float> x_scales, w_scales;

  operands(const flywheel_matmul& op, std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto code = [&](int least, int most) {
      return static_cast<std::int8_t>(least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1)));
    };
    const auto scale = [&] {
      return static_cast<float>(random() % 20000 + 1) * 1.7e-6F * (random() % 2 == 0 ? 1.0F : -1.0F);
    };
    const std::int64_t groups = groups_of(op);
    x.resize(static_cast<std::size_t>(op.rows * op.k));
    w.resize(static_cast<std::size_t>(op.n * op.k));
    x_scales.resize(static_cast<std::size_t>(op.rows * groups));
    w_scales.resize(static_cast<std::size_t>(op.n * groups));
    for (auto& c : x) c = code(-127, 127);
    for (auto& c : w) c = op.weights.bits == 8 ? code(-127, 127) : code(-8, 7);
    for (auto& s : x_scales) s = scale();
    for (auto& s : w_scales) s = scale();
  }

  /// The formula of plugin.h. Volatile: each operation is rounded, whatever the compiler would like to fuse.
  [[nodiscard]] std::vector<float> product(const flywheel_matmul& op) const {
    const std::int64_t groups = groups_of(op), width = op.weights.group == 0 ? op.k : op.weights.group;
    std::vector<float> y;
    for (std::int64_t r = 0; r < op.rows; ++r)
      for (std::int64_t c = 0; c < op.n; ++c) {
        volatile float sum = 0;
        for (std::int64_t g = 0; g < groups; ++g) {
          std::int64_t exact = 0;
          for (std::int64_t i = g * width; i < std::min(op.k, (g + 1) * width); ++i)
            exact += x[static_cast<std::size_t>(r * op.k + i)] * w[static_cast<std::size_t>(c * op.k + i)];
          volatile float term = static_cast<float>(static_cast<std::int32_t>(exact));
          term = term * w_scales[static_cast<std::size_t>(c * groups + g)];
          term = term * x_scales[static_cast<std::size_t>(r * groups + g)];
          sum = g == 0 ? term : sum + term;
        }
        y.push_back(float{sum});
      }
    return y;
  }
};

/// Equal bits, or both NaN.
inline bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}

/// An open device, closed at the end.
class npu_fixture {
 public:
  explicit npu_fixture(std::string_view profile, std::string_view options = {})
      : simulator(device::simulated_npu::create(profile, options).value()), t(simulator->table()), d(t.self) {
    caps.size = sizeof caps;
    REQUIRE(t.caps(d, &caps) == FLYWHEEL_OK);
  }
  npu_fixture(const npu_fixture&) = delete;
  npu_fixture& operator=(const npu_fixture&) = delete;
  ~npu_fixture() { t.close(d); }

  std::shared_ptr<device::simulated_npu> simulator;
  flywheel_device_table t;
  flywheel_device* d;
  flywheel_device_caps caps{};

  [[nodiscard]] std::string error() const {
    char text[256];
    t.last_error(d, text, sizeof text);
    return text;
  }
  [[nodiscard]] std::vector<flywheel_weight_format> formats() const {
    return {caps.weight_formats, caps.weight_formats + caps.n_weight_formats};
  }
  [[nodiscard]] flywheel_support query(const flywheel_matmul& op, flywheel_status expected = FLYWHEEL_OK) const {
    flywheel_support answer{};
    answer.size = sizeof answer;
    CHECK(t.query(d, &op, &answer) == expected);
    return answer;
  }

  /// The blob of a program; empty if it is not compiled.
  [[nodiscard]] std::vector<std::uint8_t> compile(const std::vector<flywheel_matmul>& ops, std::uint32_t n_inputs = 1,
                                                  flywheel_status expected = FLYWHEEL_OK) const {
    std::vector<std::uint8_t> blob;
    const flywheel_sink sink{&blob, [](void* context, const void* data, std::uint64_t bytes) -> flywheel_status {
                               auto& out = *static_cast<std::vector<std::uint8_t>*>(context);
                               const auto* const from = static_cast<const std::uint8_t*>(data);
                               out.insert(out.end(), from, from + bytes);
                               return FLYWHEEL_OK;
                             }};
    const flywheel_part part{sizeof part, static_cast<std::uint32_t>(ops.size()), ops.data(), n_inputs};
    CHECK(t.compile(d, &part, &sink) == expected);
    return blob;
  }
  [[nodiscard]] flywheel_executable* load(const std::vector<std::uint8_t>& blob,
                                          flywheel_status expected = FLYWHEEL_OK) const {
    flywheel_executable* out = nullptr;
    CHECK(t.load(d, blob.data(), blob.size(), &out) == expected);
    return out;
  }

  [[nodiscard]] flywheel_buffer* alloc(std::uint64_t bytes, flywheel_status expected = FLYWHEEL_OK) const {
    flywheel_buffer* out = nullptr;
    CHECK(t.alloc(d, bytes, &out) == expected);
    return out;
  }
  void write(flywheel_buffer* buffer, const void* data, std::size_t bytes) const {
    void* at = nullptr;
    REQUIRE(t.map(d, buffer, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) == FLYWHEEL_OK);
    std::memcpy(at, data, bytes);
    REQUIRE(t.unmap(d, buffer) == FLYWHEEL_OK);
  }
  [[nodiscard]] std::vector<float> read(flywheel_buffer* buffer, std::size_t n) const {
    std::vector<float> out(n);
    void* at = nullptr;
    REQUIRE(t.map(d, buffer, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &at) == FLYWHEEL_OK);
    std::memcpy(out.data(), at, n * sizeof(float));
    REQUIRE(t.unmap(d, buffer) == FLYWHEEL_OK);
    return out;
  }
  [[nodiscard]] std::vector<std::byte> packed(const flywheel_matmul& op, const operands& from) const {
    std::uint64_t bytes = 0;
    REQUIRE(t.packed_size(d, &op, &bytes) == FLYWHEEL_OK);
    std::vector<std::byte> out(bytes);
    REQUIRE(t.pack(d, &op, from.w.data(), from.w_scales.data(), out.data()) == FLYWHEEL_OK);
    return out;
  }
};

/// One product, ready to be submitted.
class npu_job {
 public:
  npu_job(npu_fixture& npu, const flywheel_matmul& op, std::uint32_t seed, bool upload_now = true)
      : op(op), from(op, seed), npu_(npu) {
    executable = npu.load(npu.compile({op}));
    std::uint64_t weights_bytes = 0;
    REQUIRE(npu.t.packed_size(npu.d, &op, &weights_bytes) == FLYWHEEL_OK);
    codes = npu.alloc(from.x.size());
    scales = npu.alloc(from.x_scales.size() * sizeof(float));
    weights = npu.alloc(weights_bytes);
    output = npu.alloc(result_count() * sizeof(float));
    if (upload_now) upload();
  }
  npu_job(const npu_job&) = delete;
  npu_job& operator=(const npu_job&) = delete;
  ~npu_job() {
    for (flywheel_buffer* b : {codes, scales, weights, output}) npu_.t.release(npu_.d, b);
    npu_.t.unload(npu_.d, executable);
  }

  flywheel_matmul op;
  operands from;
  flywheel_executable* executable;
  flywheel_buffer *codes, *scales, *weights, *output;

  void upload() const {
    npu_.write(codes, from.x.data(), from.x.size());
    npu_.write(scales, from.x_scales.data(), from.x_scales.size() * sizeof(float));
    const auto packed = npu_.packed(op, from);
    npu_.write(weights, packed.data(), packed.size());
  }
  [[nodiscard]] std::size_t result_count() const { return static_cast<std::size_t>(op.rows * op.n); }
  [[nodiscard]] flywheel_status submit(flywheel_fence& out, const std::vector<flywheel_fence>& waits = {},
                                       flywheel_buffer* instead_of_output = nullptr) const {
    const flywheel_input input{{codes, 0}, {scales, 0}};
    const flywheel_region w{weights, 0}, y{instead_of_output ? instead_of_output : output, 0};
    const flywheel_bindings b{sizeof b, 1, 1, &input, &w, &y};
    return npu_.t.submit(npu_.d, executable, &b, waits.data(), static_cast<std::uint32_t>(waits.size()), &out);
  }
  [[nodiscard]] flywheel_status run() const {
    flywheel_fence fence = 0;
    const flywheel_status status = submit(fence);
    return status == FLYWHEEL_OK ? npu_.t.wait(npu_.d, fence, forever) : status;
  }
  [[nodiscard]] std::vector<float> result() const { return npu_.read(output, result_count()); }

  static constexpr std::uint64_t forever = ~std::uint64_t{0};

 private:
  npu_fixture& npu_;
};

}  // namespace flywheel::test
