// How fast the device is, through the interface, on this host: for reports, never a reason to fail.
#include <algorithm>
#include <chrono>

#include "device_conformance/check.hpp"

namespace flywheel::kit {
namespace {

using clock = std::chrono::steady_clock;

void measure(bench& b) {
  std::mt19937_64 random = b.random(80);
  json rows = json::array();
  const std::int64_t size = b.options().quick ? 512 : 2048;
  for (const flywheel_weight_format& f : b.formats())
    for (const std::int64_t m : {1, 32, 128}) {
      const flywheel_matmul op = make_op(m, size, size, f);
      flywheel_support answer;
      if (b.device().query(op, answer) != FLYWHEEL_OK || answer.ok == 0) continue;
      bound_workload work(b.device(), make_workload({op}, filling::random, random), placing::apart);
      // The best of several: what the device can do, not what else the host was doing.
      double best = 1e30;
      const clock::time_point end = clock::now() + std::chrono::milliseconds(b.options().quick ? 50 : 500);
      do {
        const clock::time_point begin = clock::now();
        b.device().wait(work.submit());
        best = std::min(best, std::chrono::duration<double>(clock::now() - begin).count());
      } while (clock::now() < end);
      work.check();
      rows.push_back({{"rows", m},
                      {"n", size},
                      {"k", size},
                      {"bits", f.bits},
                      {"group", f.group},
                      {"seconds", best},
                      {"multiply_adds_per_second", static_cast<double>(m * size * size) / best}});
    }
  b.note = std::to_string(rows.size()) + " shapes";
  b.facts["throughput"] = rows;
}

constexpr check measurement_list[] = {
    {"measurements", "throughput", "time from submit to the end of wait", false, measure},
};

}  // namespace

std::span<const check> measurements() { return measurement_list; }

}  // namespace flywheel::kit
