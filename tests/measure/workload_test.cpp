// The workloads compute what they claim to, on any number of threads; random weights are what they are said to be.
#include <cmath>
#include <vector>

#include "flywheel/core/isa.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/formats/formats.hpp"
#include "kernels/registry.hpp"
#include "src/measure/matmul.hpp"
#include "src/measure/random_weights.hpp"
#include "src/measure/roofs.hpp"
#include "support/catch.hpp"

using namespace flywheel;

TEST_CASE("products are right for every way of cutting them") {
  const isa_report isa = detect_isa().value();
  for (const unsigned threads : {1U, 2U, 3U}) {
    const std::shared_ptr<executor> team = make_thread_team(threads).value();
    buffer area = measure::make_area(*team, 8 << 20).value();
    for (const dtype type : {dtype::f32, dtype::q8_0, dtype::q4_k}) {
      const kernels::matmul_kernel& kernel = *kernels::find_matmul(kernels::find_cluster(isa.selected), type);
      // 300 columns: a panel that is not full. Rows of 256 are prepared by each thread for itself up to 64 of them.
      auto work = measure::matmul_workload::create(kernel, 300, 256, 200, area.mutable_bytes(), *team).value();
      CHECK(work.copies() > 3);
      for (const std::int64_t m : {1, 5, 8, 9, 40, 64, 65, 130, 200}) {
        work.run(m, 3);
        INFO(kernel.name << ", " << threads << " threads, " << m << " rows");
        CHECK(work.max_error(m) < (type == dtype::f32 ? 1e-5 : 5e-2));
      }
    }
  }
}

TEST_CASE("an error of a product is noticed") {
  const std::shared_ptr<executor> team = make_thread_team(2).value();
  buffer area = measure::make_area(*team, 1 << 20).value();
  const kernels::matmul_kernel& kernel = *kernels::find_matmul(kernels::cluster::generic, dtype::f32);
  auto work = measure::matmul_workload::create(kernel, 64, 256, 8, area.mutable_bytes(), *team).value();
  std::fill(area.mutable_bytes().begin(), area.mutable_bytes().end(), std::byte{0});
  work.run(8, 1);
  CHECK(work.max_error(8) > 0.5);
  CHECK(!measure::matmul_workload::create(kernel, 4096, 256, 8, area.mutable_bytes(), *team));
}

TEST_CASE("roofs are measured, and more bursts never lower them") {
  const std::shared_ptr<executor> team = make_thread_team(2).value();
  const buffer area = measure::make_area(*team, 1 << 20).value();
  measure::roof_meter meter(*team, detect_isa().value().selected, area.bytes());
  CHECK(meter.best().int8 == 0);
  meter.measure();
  const measure::roofs first = meter.best();
  CHECK(first.int8 > 0);
  CHECK(first.f32 > 0);
  CHECK(first.read > 0);
  CHECK(meter.median_read() <= first.read);
  meter.measure();
  CHECK(meter.best().int8 >= first.int8);
  CHECK(meter.best().read >= first.read);
  CHECK(measure::measure_clock() > 0);
  CHECK(measure::measure_dispatch(*team) > 0);
}

TEST_CASE("random weights have mean 0 and the deviation asked for") {
  for (const dtype_info& facts : dtype_table) {
    if (!measure::can_make_rows(facts.type)) continue;
    constexpr std::int64_t cols = 1024;
    constexpr std::size_t rows = 64;
    measure::random_bits random(1);
    std::vector<std::byte> bytes(row_bytes(facts.type, cols) * rows);
    measure::fill_random_rows(random, facts.type, cols, 0.02F, bytes);
    std::vector<float> x(cols);
    double sum = 0, squares = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      formats::find_decoder(facts.type)(bytes.data() + r * row_bytes(facts.type, cols), cols, x.data());
      for (const float v : x) sum += v, squares += static_cast<double>(v) * v;
    }
    if (facts.kind == dtype_kind::integer) continue;
    INFO(facts.name);
    const double deviation = std::sqrt(squares / (rows * cols));
    CHECK(deviation > 0.01);
    CHECK(deviation < 0.04);
    CHECK(std::fabs(sum / (rows * cols)) < 0.004);
  }
}
