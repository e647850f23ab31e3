// Results, bit for bit.
#include <algorithm>

#include "device_conformance/check.hpp"

namespace flywheel::kit {
namespace {

/// Counts what was computed, and what query refused.
class tally {
 public:
  explicit tally(bench& b) : bench_(b) {}
  ~tally() {
    bench_.note = std::to_string(done_) + " programs" +
                  (refused_ > 0 ? ", " + std::to_string(refused_) + " refused by query (" + reason_ + ")" : "");
  }
  /// Whether the device takes every operation.
  [[nodiscard]] bool takes(const std::vector<flywheel_matmul>& ops) {
    for (const flywheel_matmul& op : ops) {
      flywheel_support answer;
      const flywheel_status status = bench_.device().query(op, answer);
      if (status == FLYWHEEL_OK && answer.ok != 0) continue;
      if (refused_++ == 0) reason_ = answer.reason;
      return false;
    }
    ++done_;
    return true;
  }
  void run(std::vector<flywheel_matmul> ops, filling how, std::mt19937_64& random) {
    if (!takes(ops)) return;
    const placing where = done_ % 2 == 0 ? placing::together : placing::apart;
    bound_workload(bench_.device(), make_workload(std::move(ops), how, random), where).run();
  }
  void expect_some() const { expect(done_ > 0, "query refuses everything that the check asks for: " + reason_); }

 private:
  bench& bench_;
  int done_ = 0, refused_ = 0;
  std::string reason_;
};

void check_bounds(bench& b) {
  std::mt19937_64 random = b.random(48);
  for (const flywheel_weight_format& f : b.formats())
    for (const placing where : {placing::apart, placing::together})
      bound_workload(b.device(),
                     make_workload({make_op(3, 45, 256, f), make_op(3, 30, 256, f)}, filling::random, random), where)
          .run();
}

void check_rows(bench& b) {
  std::mt19937_64 random = b.random(40);
  tally t(b);
  for (const flywheel_weight_format& f : b.formats())
    for (const std::int64_t rows : {1, 2, 7, 32, 128}) t.run({make_op(rows, 96, 512, f)}, filling::random, random);
  t.expect_some();
}

void check_shapes(bench& b) {
  std::mt19937_64 random = b.random(41);
  tally t(b);
  struct size {
    std::int64_t rows, n, k;
  };
  std::vector<size> sizes = {{1, 1, 1},     {2, 3, 5},     {7, 17, 33},  {1, 33, 127},
                             {3, 257, 129}, {32, 31, 300}, {1, 1000, 64}};
  if (!b.options().quick)
    sizes.insert(sizes.end(), {{1, 2048, 2048}, {5, 129, 4099}, {128, 255, 385}, {1, 31, 11008}, {33, 515, 1030}});
  for (const flywheel_weight_format& f : b.formats())
    for (const size& s : sizes) t.run({make_op(s.rows, s.n, s.k, f)}, filling::random, random);
  t.expect_some();
}

void check_several(bench& b) {
  std::mt19937_64 random = b.random(42);
  tally t(b);
  for (const flywheel_weight_format& f : b.formats())
    for (const std::int64_t rows : {1, 7}) {
      // What attention has: three products of one input.
      t.run({make_op(rows, 64, 256, f, 0), make_op(rows, 16, 256, f, 0), make_op(rows, 24, 256, f, 0)}, filling::random,
            random);
      t.run({make_op(rows, 40, 256, f, 1), make_op(rows, 33, 130, f, 0), make_op(rows, 8, 256, f, 1),
             make_op(rows, 5, 512, f, 2)},
            filling::random, random);
    }
  t.expect_some();
}

void check_mixed(bench& b) {
  std::mt19937_64 random = b.random(43);
  const auto formats = b.formats();
  std::vector<flywheel_matmul> ops;
  for (const flywheel_weight_format& f : formats)
    if (f.group == formats.front().group) ops.push_back(make_op(2, 48, 256, f));
  if (ops.size() < 2) throw not_applicable("no two formats share a group");
  tally t(b);
  t.run(ops, filling::random, random);
  t.expect_some();
}

void check_filling(bench& b, std::uint64_t stream, filling how) {
  std::mt19937_64 random = b.random(stream);
  tally t(b);
  for (const flywheel_weight_format& f : b.formats()) {
    for (const std::int64_t rows : {1, 6}) t.run({make_op(rows, 36, 515, f)}, how, random);
    if (how == filling::extreme && f.group == 0) t.run({make_op(3, 6, 131071, f)}, how, random);  // the largest sums
  }
  t.expect_some();
}
void check_extreme(bench& b) { check_filling(b, 44, filling::extreme); }
void check_special(bench& b) { check_filling(b, 45, filling::special); }

void check_again(bench& b) {
  std::mt19937_64 random = b.random(46);
  probe& d = b.device();
  const std::vector<flywheel_matmul> ops = {make_op(4, 48, 320, b.formats().front())};
  bound_workload first(d, make_workload(ops, filling::random, random), placing::apart);
  bound_workload second(d, make_workload(ops, filling::random, random), placing::together, first.loaded());
  for (int i = 0; i < 5; ++i) {
    first.run();
    second.run();
  }
}

void check_reopened(bench& b) {
  std::mt19937_64 random = b.random(47);
  for (int i = 0; i < 2; ++i) {
    bound_workload(b.device(), make_workload({make_op(2, 32, 256, b.formats().front())}, filling::random, random),
                   placing::apart)
        .run();
    b.close();
  }
}

constexpr check result_list[] = {
    {"results", "results.bounds", "nothing is written but the outputs", true, check_bounds},
    {"results", "results.rows", "1, 2, 7, 32 and 128 rows in each format", true, check_rows},
    {"results", "results.shapes", "odd and large n and k", true, check_shapes},
    {"results", "results.several", "several operations and inputs in one program", true, check_several},
    {"results", "results.mixed", "several formats in one program", true, check_mixed},
    {"results", "results.extreme", "codes at the ends of their range", true, check_extreme},
    {"results", "results.special", "zero, NaN, infinite and subnormal scales", true, check_special},
    {"results", "results.again", "a program runs again with other operands", true, check_again},
    {"results", "results.reopened", "a device that was closed opens again", true, check_reopened},
};

}  // namespace

std::span<const check> result_checks() { return result_list; }

}  // namespace flywheel::kit
