// Simulated NPUs compute the formula of plugin.h bit for bit, in a layout of their own.
#include <limits>

#include "device/simulator.hpp"
#include "src/core/float_control.hpp"
#include "src/device/simulator/cost.hpp"
#include "src/device/simulator/tiles.hpp"

using namespace flywheel;
using namespace flywheel::test;
namespace simulation = flywheel::device::simulation;

namespace {

const simulation::profile& profile_named(std::string_view name) {
  for (const auto& p : simulation::profiles())
    if (p.name == name) return p;
  throw std::invalid_argument("no such profile");
}

simulation::product product_of(const flywheel_matmul& op) {
  return {op.rows, op.n, op.k, op.weights.bits, op.weights.group};
}

}  // namespace

TEST_CASE("simulated NPUs compute the formula for any number of rows", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile);
    REQUIRE(npu.caps.n_weight_formats == 3);
    for (const flywheel_weight_format format : npu.formats())
      for (std::int64_t rows = 1; rows <= 40; rows += rows < 10 ? 1 : 5) {
        CAPTURE(profile, format.bits, format.group, rows);
        npu_job job(npu, matmul(rows, 45 + rows, 100 + 37 * rows, format), static_cast<std::uint32_t>(rows));
        REQUIRE(job.run() == FLYWHEEL_OK);
        REQUIRE(same_floats(job.result(), job.from.product(job.op)));
      }
  }
}

TEST_CASE("simulated NPUs compute the formula for odd sizes", "[simulator]") {
  const std::int64_t sizes[][2] = {{1, 1}, {1, 129}, {33, 7}, {31, 31}, {65, 128}, {7, 1023}, {3, 4096}};
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile);
    for (const flywheel_weight_format format : npu.formats())
      for (const auto& [n, k] : sizes) {
        CAPTURE(profile, format.bits, format.group, n, k);
        npu_job job(npu, matmul(3, n, k, format), 7);
        REQUIRE(job.run() == FLYWHEEL_OK);
        REQUIRE(same_floats(job.result(), job.from.product(job.op)));
      }
  }
}

TEST_CASE("blocks of any size give the same bits", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    const auto& p = profile_named(profile);
    auto unit = simulation::matrix_unit::create(p, p.scratch_bytes).value();
    for (const flywheel_weight_format format : p.formats) {
      const flywheel_matmul op = matmul(37, 75, 901, format);
      const simulation::product of = product_of(op);
      const operands from(op, 3);
      std::vector<std::byte> packed(simulation::packed_bytes(p, of));
      REQUIRE(simulation::pack_weights(p, of, from.w.data(), from.w_scales.data(), packed.data()));
      const std::vector<float> expected = from.product(op);
      const simulation::blocking least = simulation::smallest_blocking(p, of);
      int tried = 0;
      for (simulation::blocking b = least; b.m <= 64; b.m *= 2)
        for (b.n = least.n; b.n <= 96; b.n += least.n)
          for (b.k = least.k; b.k <= 1024; b.k *= 2) {
            if (!simulation::valid(p, of, b)) continue;
            CAPTURE(profile, format.bits, format.group, b.m, b.n, b.k);
            std::vector<float> y(expected.size());
            unit.multiply(of, b, reinterpret_cast<const std::byte*>(from.x.data()),
                          reinterpret_cast<const std::byte*>(from.x_scales.data()), packed.data(),
                          reinterpret_cast<std::byte*>(y.data()));
            REQUIRE(same_floats(y, expected));
            ++tried;
          }
      REQUIRE(tried > 5);
    }
  }
}

TEST_CASE("the largest sums are exact, and special scales follow the formula", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile);
    npu_job longest(npu, matmul(1, 2, 131071, {8, 0}), 1, false);
    std::fill(longest.from.x.begin(), longest.from.x.end(), std::int8_t{-127});
    std::fill(longest.from.w.begin(), longest.from.w.end(), std::int8_t{-127});
    longest.upload();
    REQUIRE(longest.run() == FLYWHEEL_OK);
    REQUIRE(same_floats(longest.result(), longest.from.product(longest.op)));

    npu_job special(npu, matmul(4, 40, 300, {4, 128}), 2, false);
    auto& w = special.from.w_scales;
    w[0] = std::numeric_limits<float>::quiet_NaN();
    w[4] = std::numeric_limits<float>::infinity();
    w[7] = -0.0F;
    w[9] = 1e-42F;  // denormal: nothing is flushed to zero
    w[10] = w[11] = 1e-42F;
    w[12] = 3e38F;
    special.from.x_scales[0] = 1.0F;
    special.from.x_scales[5] = std::numeric_limits<float>::quiet_NaN();
    special.upload();
    REQUIRE(special.run() == FLYWHEEL_OK);
    const auto y = special.result();
    REQUIRE(same_floats(y, special.from.product(special.op)));
    REQUIRE(std::isnan(y[0]));
    REQUIRE(y[3] != 0);
    for (int c = 0; c < 40; ++c) REQUIRE(std::isnan(y[static_cast<std::size_t>(40 + c)]));
  }
}

#if defined(__SSE__)
TEST_CASE("a host that flushes denormals does not change products", "[simulator]") {
  const float_control usual = get_float_control();
  set_float_control(usual | 0x8040U);  // workers begin with the mode of the thread that starts them
  auto npu = std::make_unique<npu_fixture>("xdna-sim");
  set_float_control(usual);
  npu_job job(*npu, matmul(2, 8, 64, {8, 0}), 2, false);
  std::fill(job.from.w_scales.begin(), job.from.w_scales.end(), 1e-42F);
  job.upload();
  set_float_control(usual | 0x8040U);
  const flywheel_status status = job.run();
  set_float_control(usual);
  REQUIRE(status == FLYWHEEL_OK);
  const auto y = job.result();
  CHECK(std::any_of(y.begin(), y.end(), [](float v) { return v != 0; }));
  CHECK(same_floats(y, job.from.product(job.op)));
}
#endif

TEST_CASE("packed weights unpack to what they were, and are in tiles", "[simulator]") {
  std::vector<std::vector<std::byte>> layouts;
  for (const char* profile : simulator_profiles) {
    npu_fixture npu(profile);
    for (const flywheel_weight_format format : npu.formats())
      for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {32, 128}, {77, 401}}) {
        CAPTURE(profile, format.bits, format.group, n, k);
        const flywheel_matmul op = matmul(0, n, k, format);
        const operands from(op, 11);
        const auto packed = npu.packed(op, from);
        std::vector<std::int8_t> codes(from.w.size());
        std::vector<float> scales(from.w_scales.size());
        REQUIRE(npu.t.unpack(npu.d, &op, packed.data(), codes.data(), scales.data()) == FLYWHEEL_OK);
        CHECK(codes == from.w);
        CHECK(scales == from.w_scales);
        if (n == 32) {
          // Whole tiles take no more than their bits and scales, and no layout is row-major.
          CHECK(packed.size() == static_cast<std::size_t>(n * k * format.bits / 8 + n * groups_of(op) * 4));
          if (format.bits == 8) CHECK(std::memcmp(packed.data(), from.w.data(), from.w.size()) != 0);
          if (format.bits == 4 && format.group == 128) layouts.push_back(packed);
        }
      }
    const flywheel_matmul op = matmul(1, 1, 2, {4, 128});
    const std::int8_t beyond[] = {7, 8};
    const float scale = 1;
    std::vector<std::byte> out(4096);
    CHECK(npu.t.pack(npu.d, &op, beyond, &scale, out.data()) == FLYWHEEL_INVALID_ARGUMENT);
  }
  REQUIRE(layouts.size() == 2);
  CHECK(layouts[0].size() == layouts[1].size());
  CHECK(layouts[0] != layouts[1]);
}

TEST_CASE("a simulated NPU says what it computes, and why not", "[simulator]") {
  npu_fixture hexagon("hexagon-sim"), xdna("xdna-sim");
  CHECK(hexagon.query(matmul(1, 4096, 4096, {8, 0})).ok == 1);
  for (const npu_fixture* npu : {&hexagon, &xdna}) {
    for (const flywheel_weight_format format : {flywheel_weight_format{16, 0}, {8, 32}, {4, 64}, {5, 128}}) {
      const flywheel_support answer = npu->query(matmul(1, 64, 64, format));
      CHECK(answer.ok == 0);
      CHECK(std::string(answer.reason).find(std::to_string(format.bits) + "-bit") != std::string::npos);
      std::uint64_t bytes = 0;
      const flywheel_matmul op = matmul(1, 64, 64, format);
      CHECK(npu->t.packed_size(npu->d, &op, &bytes) == FLYWHEEL_UNSUPPORTED);
    }
    CHECK(npu->query(matmul(1, 64, 131072, {8, 0})).ok == 0);
    CHECK(npu->query(matmul(70000, 64, 64, {8, 0})).ok == 0);
    (void)npu->query(matmul(1, 0, 64, {8, 0}), FLYWHEEL_INVALID_ARGUMENT);
    (void)npu->query(matmul(-1, 64, 64, {8, 0}), FLYWHEEL_INVALID_ARGUMENT);
    flywheel_matmul other = matmul(1, 64, 64, {8, 0});
    other.kind = 99;
    CHECK(npu->query(other, FLYWHEEL_UNSUPPORTED).ok == 0);
    const flywheel_support any = npu->query(matmul(0, 64, 64, {8, 0})), one = npu->query(matmul(1, 64, 64, {8, 0}));
    CHECK(any.ok == 1);
    CHECK(any.seconds == one.seconds);
    // An answer of another size is filled no further than that.
    struct {
      flywheel_support answer{};
      char behind = 'x';
    } small;
    small.answer.size = 8;
    small.answer.reason[0] = 'y';
    const flywheel_matmul op = matmul(1, 64, 64, {8, 0});
    CHECK(npu->t.query(npu->d, &op, &small.answer) == FLYWHEEL_OK);
    CHECK(small.answer.ok == 1);
    CHECK(small.answer.reason[0] == 'y');
  }
  CHECK(hexagon.query(matmul(1, 64, 64, {4, 0})).ok == 1);
  CHECK(xdna.query(matmul(1, 64, 64, {4, 0})).ok == 0);
  CHECK(xdna.query(matmul(1, 64, 256, {8, 128})).ok == 1);
  CHECK(hexagon.query(matmul(1, 64, 256, {8, 128})).ok == 0);
}

TEST_CASE("on-chip memory is a hard limit", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    CAPTURE(profile);
    const flywheel_matmul op = matmul(64, 300, 1000, {4, 128});
    const auto& p = profile_named(profile);
    const std::uint64_t least =
        simulation::lay_out(p, product_of(op), simulation::smallest_blocking(p, product_of(op))).bytes;
    {
      npu_fixture npu(profile, "scratch=" + std::to_string(least - 1));
      const flywheel_support answer = npu.query(op);
      CHECK(answer.ok == 0);
      CHECK(std::string(answer.reason).find(std::to_string(least)) != std::string::npos);
      CHECK(std::string(answer.reason).find(std::to_string(least - 1)) != std::string::npos);
      (void)npu.compile({op}, 1, FLYWHEEL_UNSUPPORTED);
    }
    double seconds = 1;
    for (const std::uint64_t scratch : {least, 4 * least, p.scratch_bytes}) {
      npu_fixture npu(profile, "scratch=" + std::to_string(scratch));
      CHECK(npu.caps.scratch_bytes == scratch);
      const flywheel_support answer = npu.query(op);
      CHECK(answer.ok == 1);
      CHECK(answer.scratch_bytes <= scratch);
      CHECK(answer.seconds < seconds);  // more memory, larger blocks
      seconds = answer.seconds;
      npu_job job(npu, op, 5);
      REQUIRE(job.run() == FLYWHEEL_OK);
      CHECK(same_floats(job.result(), job.from.product(op)));
    }
  }
}

TEST_CASE("the cycle model counts what was submitted", "[simulator]") {
  for (const char* profile : simulator_profiles) {
    CAPTURE(profile);
    const auto& p = profile_named(profile);
    npu_fixture npu(profile);
    const flywheel_matmul op = matmul(5, 100, 500, {8, 0});
    npu_job job(npu, op, 5);
    for (int i = 0; i < 3; ++i) REQUIRE(job.run() == FLYWHEEL_OK);
    const auto r = npu.simulator->report();
    CHECK(r.submissions == 3);
    CHECK(r.multiply_adds == 3 * 5 * 100 * 500);
    const auto round = [](std::uint64_t x, std::uint64_t to) { return (x + to - 1) / to * to; };
    CHECK(r.tile_multiply_adds == 3 * round(5, p.tile_m) * round(100, p.strip()) * round(500, p.tile_k));
    CHECK(r.launch_cycles == 3 * p.launch_cycles());
    const double expected = npu.query(op).seconds * p.clock_hz * 3;
    CHECK(std::abs(static_cast<double>(r.cycles) - expected) <= 3);  // one after the other
    CHECK(r.compute_cycles >= r.tile_multiply_adds / p.multiply_adds_per_cycle);
    CHECK(r.utilisation > 0);
    CHECK(r.utilisation < 0.1);  // mostly launches
  }
  // Of a large product, a matrix unit is mostly busy; of a single row, the DMA engine is.
  npu_fixture npu("hexagon-sim");
  const double many = npu.query(matmul(2048, 8192, 4096, {8, 0})).seconds,
               one = npu.query(matmul(1, 8192, 4096, {8, 0})).seconds;
  CHECK(2048.0 * 8192 * 4096 / many > 0.5 * npu.caps.multiply_adds_per_second);
  CHECK(8192.0 * 4096 / (one - npu.caps.launch_seconds) > 0.8 * npu.caps.bytes_per_second);
  CHECK(8192.0 * 4096 / (one - npu.caps.launch_seconds) <= npu.caps.bytes_per_second);
}
