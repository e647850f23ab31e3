// Programs of simulated NPUs: what is compiled, and blobs that cannot be trusted.
#include <limits>

#include "device/simulator.hpp"
#include "src/core/checksum.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

std::vector<flywheel_matmul> three_ops() {
  return {matmul(5, 40, 200, {8, 0}), matmul(5, 33, 200, {8, 0}), matmul(7, 64, 256, {4, 128}, 1)};
}

/// Puts the checksum right, so that what lies behind it is reached.
void seal(std::vector<std::uint8_t>& blob) {
  detail::checksum sum;
  sum.add(std::as_bytes(std::span(blob).first(blob.size() - 8)));
  const std::uint64_t value = sum.value();
  for (std::size_t i = 0; i < 8; ++i) blob[blob.size() - 8 + i] = static_cast<std::uint8_t>(value >> (8 * i));
}

}  // namespace

TEST_CASE("a program of several products computes each", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile);
    const auto ops = three_ops();
    flywheel_executable* const executable = npu.load(npu.compile(ops, 2));
    // Everything in one buffer, at aligned offsets.
    std::uint64_t size = 0;
    const auto place = [&](std::uint64_t bytes) {
      const std::uint64_t at = size;
      size += (bytes + npu.caps.alignment - 1) / npu.caps.alignment * npu.caps.alignment;
      return at;
    };
    std::vector<operands> from;
    std::vector<std::vector<std::byte>> packed;
    std::vector<std::uint64_t> weights_at, outputs_at, codes_at, scales_at;
    for (const auto& op : ops) {
      from.emplace_back(op, 20 + op.input);  // x of one input is the same
      packed.push_back(npu.packed(op, from.back()));
      weights_at.push_back(place(packed.back().size()));
      outputs_at.push_back(place(static_cast<std::uint64_t>(op.rows * op.n) * 4));
    }
    for (const std::size_t i : {0, 2}) {
      codes_at.push_back(place(from[i].x.size()));
      scales_at.push_back(place(from[i].x_scales.size() * 4));
    }
    flywheel_buffer* const all = npu.alloc(size);
    void* mapped = nullptr;
    REQUIRE(npu.t.map(npu.d, all, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &mapped) == FLYWHEEL_OK);
    CHECK(reinterpret_cast<std::uintptr_t>(mapped) % npu.caps.alignment == 0);
    auto* const bytes = static_cast<std::byte*>(mapped);
    std::vector<flywheel_region> weights, outputs;
    std::vector<flywheel_input> inputs;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      std::memcpy(bytes + weights_at[i], packed[i].data(), packed[i].size());
      weights.push_back({all, weights_at[i]});
      outputs.push_back({all, outputs_at[i]});
    }
    for (std::size_t i = 0; i < 2; ++i) {
      std::memcpy(bytes + codes_at[i], from[2 * i].x.data(), from[2 * i].x.size());
      std::memcpy(bytes + scales_at[i], from[2 * i].x_scales.data(), from[2 * i].x_scales.size() * 4);
      inputs.push_back({{all, codes_at[i]}, {all, scales_at[i]}});
    }
    REQUIRE(npu.t.unmap(npu.d, all) == FLYWHEEL_OK);
    flywheel_bindings b{sizeof b, 2, 3, inputs.data(), weights.data(), outputs.data()};
    flywheel_fence fence = 0;
    REQUIRE(npu.t.submit(npu.d, executable, &b, nullptr, 0, &fence) == FLYWHEEL_OK);
    REQUIRE(npu.t.wait(npu.d, fence, npu_job::forever) == FLYWHEEL_OK);
    REQUIRE(npu.t.map(npu.d, all, FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE, &mapped) == FLYWHEEL_OK);
    from[1].x = from[0].x;
    from[1].x_scales = from[0].x_scales;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      std::vector<float> y(static_cast<std::size_t>(ops[i].rows * ops[i].n));
      std::memcpy(y.data(), static_cast<std::byte*>(mapped) + outputs_at[i], y.size() * 4);
      CHECK(same_floats(y, from[i].product(ops[i])));
    }
    REQUIRE(npu.t.unmap(npu.d, all) == FLYWHEEL_OK);

    outputs[1] = outputs[0];  // would be written twice
    CHECK(npu.t.submit(npu.d, executable, &b, nullptr, 0, &fence) == FLYWHEEL_INVALID_ARGUMENT);
    CHECK(npu.error().find("overlaps") != std::string::npos);
    npu.t.release(npu.d, all);
    npu.t.unload(npu.d, executable);
  }
}

TEST_CASE("what cannot be compiled is refused", "[simulator]") {
  npu_fixture npu("xdna-sim");
  (void)npu.compile({matmul(0, 40, 200, {8, 0})}, 1, FLYWHEEL_INVALID_ARGUMENT);
  CHECK(npu.error().find("at least 1") != std::string::npos);
  (void)npu.compile({matmul(1, 40, 200, {8, 0}, 1)}, 1, FLYWHEEL_INVALID_ARGUMENT);
  (void)npu.compile({matmul(1, 40, 200, {8, 0}), matmul(1, 40, 201, {8, 0})}, 1, FLYWHEEL_INVALID_ARGUMENT);
  (void)npu.compile({matmul(1, 40, 200, {8, 0}), matmul(1, 40, 200, {8, 128})}, 1, FLYWHEEL_INVALID_ARGUMENT);
  (void)npu.compile({matmul(1, 40, 200, {8, 0}), matmul(2, 40, 200, {8, 0})}, 1, FLYWHEEL_INVALID_ARGUMENT);
  (void)npu.compile(std::vector(65, matmul(1, 40, 200, {8, 0})), 1, FLYWHEEL_INVALID_ARGUMENT);
  (void)npu.compile({matmul(1, 40, 200, {6, 0})}, 1, FLYWHEEL_UNSUPPORTED);
  const flywheel_matmul op = matmul(1, 40, 200, {8, 0});
  const flywheel_part part{sizeof part, 1, &op, 1};
  const flywheel_sink full{nullptr,
                           [](void*, const void*, std::uint64_t) -> flywheel_status { return FLYWHEEL_FAILED; }};
  CHECK(npu.t.compile(npu.d, &part, &full) == FLYWHEEL_FAILED);
  CHECK(npu.t.compile(npu.d, &part, nullptr) == FLYWHEEL_INVALID_ARGUMENT);
}

TEST_CASE("damaged blobs are corrupt wherever they are damaged", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile);
    const auto blob = npu.compile(three_ops(), 2);
    for (std::size_t length = 0; length < blob.size(); ++length) {
      // An exact block, so that reading beyond it shows.
      const std::vector<std::uint8_t> cut(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(length));
      flywheel_executable* out = nullptr;
      const std::uint8_t none = 0;
      if (npu.t.load(npu.d, length == 0 ? &none : cut.data(), length, &out) != FLYWHEEL_CORRUPT)
        FAIL("cut to " << length << " bytes");
    }
    for (std::size_t bit = 0; bit < 8 * blob.size(); ++bit) {
      auto flipped = blob;
      flipped[bit / 8] = static_cast<std::uint8_t>(flipped[bit / 8] ^ 1U << bit % 8);
      flywheel_executable* out = nullptr;
      if (npu.t.load(npu.d, flipped.data(), flipped.size(), &out) != FLYWHEEL_CORRUPT) FAIL("bit " << bit);
    }
    auto longer = blob;
    longer.push_back(0);
    (void)npu.load(longer, FLYWHEEL_CORRUPT);
    CHECK(npu.simulator->report().loads == 0);
  }
}

TEST_CASE("a blob with a right checksum is still not trusted", "[simulator]") {
  npu_fixture npu("hexagon-sim");
  const auto blob = npu.compile(three_ops(), 2);
  std::size_t loaded = 0, corrupt = 0, incompatible = 0;
  for (std::size_t at = 16; at + 8 < blob.size(); ++at)
    for (const int value : {0, 1, 0x7F, 0x80, 0xFF}) {
      auto hostile = blob;
      hostile[at] = static_cast<std::uint8_t>(value);
      seal(hostile);
      flywheel_executable* out = nullptr;
      switch (npu.t.load(npu.d, hostile.data(), hostile.size(), &out)) {
        case FLYWHEEL_OK:
          ++loaded;
          npu.t.unload(npu.d, out);
          break;
        case FLYWHEEL_CORRUPT:
          ++corrupt;
          break;
        case FLYWHEEL_INCOMPATIBLE:
          ++incompatible;
          break;
        default:
          FAIL("byte " << at);
      }
    }
  CHECK(corrupt > 100);
  CHECK(incompatible > 100);  // bytes of the fingerprint
  CHECK(loaded > 0);          // bytes that were set to what they were
  CHECK(npu.simulator->report().executables == 0);
}

TEST_CASE("blobs belong to one kind of device", "[simulator]") {
  npu_fixture hexagon("hexagon-sim"), again("hexagon-sim"), small("hexagon-sim", "scratch=1000000"), xdna("xdna-sim");
  const auto blob = hexagon.compile({matmul(5, 40, 200, {8, 0})});
  (void)small.load(blob, FLYWHEEL_INCOMPATIBLE);
  CHECK(small.error().find("another device") != std::string::npos);
  (void)xdna.load(blob, FLYWHEEL_INCOMPATIBLE);
  again.t.unload(again.d, again.load(blob));

  char one[128], two[128];
  REQUIRE(hexagon.t.fingerprint(hexagon.d, one, sizeof one) == FLYWHEEL_OK);
  REQUIRE(again.t.fingerprint(again.d, two, sizeof two) == FLYWHEEL_OK);
  CHECK(std::string(one) == two);
  REQUIRE(small.t.fingerprint(small.d, two, sizeof two) == FLYWHEEL_OK);
  CHECK(std::string(one) != two);
  CHECK(hexagon.t.fingerprint(hexagon.d, one, 4) == FLYWHEEL_INVALID_ARGUMENT);
  // A later version says so, though its checksum is right.
  auto later = blob;
  later[16] = 2;
  seal(later);
  (void)again.load(later, FLYWHEEL_INCOMPATIBLE);
}
