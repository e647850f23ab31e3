#include "flywheel/model/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "support/catch.hpp"
#include "support/failing_new.hpp"

namespace flywheel {
namespace {

using test::allocation_count;
using test::fail_allocations;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// Numbers for tests: SplitMix64 from a seed.
class numbers {
 public:
  explicit numbers(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  float between(double low, double high) { return static_cast<float>(low + (high - low) * uniform()); }
  std::int32_t below(std::int32_t n) { return static_cast<std::int32_t>(bits() % static_cast<std::uint64_t>(n)); }

 private:
  std::uint64_t state_;
};

std::vector<float> random_logits(std::size_t n, std::uint64_t seed, double spread = 3) {
  numbers random(seed);
  std::vector<float> logits(n);
  for (float& l : logits) l = random.between(-spread, spread);
  return logits;
}

/// Everything switched off.
sampler_options plain() {
  sampler_options o;
  o.temperature = 1;
  o.top_k = 0;
  o.top_p = 1;
  o.min_p = 0;
  return o;
}

struct outcome {
  token_id id;
  long double p;
};

/// The documented steps in the most direct way: the kept tokens with their probabilities, in the order in which the
/// sampler lines them up for the draw (by id, or by probability once a step had to sort).
std::vector<outcome> expected(std::vector<float> logits, const sampler_options& o, std::vector<token_id> history = {}) {
  for (const auto& [id, bias] : o.logit_bias) logits[static_cast<std::size_t>(id)] += bias;
  if (o.penalty_window >= 0 && history.size() > static_cast<std::size_t>(o.penalty_window))
    history.erase(history.begin(), history.end() - o.penalty_window);
  std::map<token_id, int> counts;
  for (const token_id id : history) ++counts[id];
  for (const auto& [id, count] : counts) {
    float& l = logits[static_cast<std::size_t>(id)];
    l = l > 0 ? l / o.repetition_penalty : l * o.repetition_penalty;
    l -= static_cast<float>(count) * o.frequency_penalty;
    l -= o.presence_penalty;
  }
  std::vector<outcome> kept;
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (logits[i] != -inf) kept.push_back({static_cast<token_id>(i), 0});
  const auto logit = [&](const outcome& t) { return static_cast<long double>(logits[static_cast<std::size_t>(t.id)]); };
  const auto normalise = [&](long double temperature) {
    long double max = -inf;
    for (const outcome& t : kept) max = std::max(max, logit(t));
    long double total = 0;
    for (outcome& t : kept) total += t.p = std::exp((logit(t) - max) / temperature);
    for (outcome& t : kept) t.p /= total;
  };
  const auto sort_by_p = [&] {
    std::stable_sort(kept.begin(), kept.end(), [&](const outcome& a, const outcome& b) { return logit(a) > logit(b); });
  };
  // The fewest first ones whose mass reaches p, at least one.
  const auto cut = [](std::vector<outcome>& all, long double p) {
    long double mass = 0;
    std::size_t n = 0;
    while (n < all.size()) {
      mass += all[n++].p;
      if (mass >= p) break;
    }
    all.resize(n);
  };
  normalise(1);
  if (o.top_k > 0 && static_cast<std::size_t>(o.top_k) < logits.size()) {
    sort_by_p();
    if (kept.size() > static_cast<std::size_t>(o.top_k)) kept.resize(static_cast<std::size_t>(o.top_k));
    normalise(1);
  }
  if (o.typical_p < 1) {
    long double entropy = 0;
    for (const outcome& t : kept) entropy -= t.p > 0 ? t.p * std::log(t.p) : 0;
    std::vector<outcome> ranked = kept;
    std::stable_sort(ranked.begin(), ranked.end(), [](const outcome& a, const outcome& b) { return a.id < b.id; });
    const auto distance = [&](const outcome& t) { return std::abs(-std::log(t.p) - entropy); };
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](const outcome& a, const outcome& b) { return distance(a) < distance(b); });
    cut(ranked, o.typical_p);
    std::erase_if(kept, [&](const outcome& t) {
      return std::none_of(ranked.begin(), ranked.end(), [&](const outcome& r) { return r.id == t.id; });
    });
    normalise(1);
  }
  if (o.top_p < 1) {
    sort_by_p();
    cut(kept, o.top_p);
    normalise(1);
  }
  if (o.min_p > 0) {
    long double max = 0;
    for (const outcome& t : kept) max = std::max(max, t.p);
    std::erase_if(kept, [&](const outcome& t) { return t.p < static_cast<long double>(o.min_p) * max; });
  }
  normalise(static_cast<long double>(o.temperature));
  return kept;
}

/// What the n-th draw of a seed must give.
token_id drawn(const std::vector<outcome>& kept, std::uint64_t seed, std::uint64_t n) {
  numbers scramble(seed);
  const std::uint64_t start = scramble.bits();
  numbers random(start + n * 0x9E3779B97F4A7C15ULL);
  long double u = static_cast<long double>(random.uniform());
  for (const outcome& t : kept) {
    if (u < t.p) return t.id;
    u -= t.p;
  }
  return kept.back().id;
}

/// Pearson's statistic of `draws` against the expected distribution, as a standard normal (Wilson & Hilferty 1931).
double chi_square(const std::map<token_id, int>& draws, const std::vector<outcome>& kept) {
  double total = 0;
  for (const auto& [id, n] : draws) total += n;
  double x = 0;
  for (const outcome& t : kept) {
    const auto row = draws.find(t.id);
    const double want = static_cast<double>(t.p) * total;
    const double seen = row == draws.end() ? 0.0 : row->second;
    x += (seen - want) * (seen - want) / want;
  }
  const double k = static_cast<double>(kept.size()) - 1;
  if (k < 1) return 0;
  return (std::cbrt(x / k) - (1 - 2 / (9 * k))) / std::sqrt(2 / (9 * k));
}

void check_against_reference(const std::vector<float>& logits, const sampler_options& o, int draws,
                             const std::vector<token_id>& history = {}) {
  const std::vector<outcome> kept = expected(logits, o, history);
  sampler s = std::move(sampler::create(o)).value();
  for (const token_id id : history) REQUIRE(s.accept(id));
  std::map<token_id, int> seen;
  for (int n = 0; n < draws; ++n) {
    const result<token_id> id = s.choose(logits);
    REQUIRE(id);
    REQUIRE(*id == drawn(kept, o.seed, static_cast<std::uint64_t>(n)));
    ++seen[*id];
  }
  for (const auto& [id, n] : seen)
    REQUIRE(std::any_of(kept.begin(), kept.end(), [&, wanted = id](const outcome& t) { return t.id == wanted; }));
  if (draws >= 1000) REQUIRE(chi_square(seen, kept) < 4);
}

TEST_CASE("each sampling step alone and all together agree with the formulas", "[sampler]") {
  const std::vector<float> logits = random_logits(12, 7, 1.5);
  struct named {
    const char* name;
    sampler_options options;
  };
  std::vector<named> cases;
  const auto add = [&](const char* name, auto&& change) {
    sampler_options o = plain();
    o.seed = 11 + cases.size();
    change(o);
    cases.push_back({name, o});
  };
  add("plain", [](auto&) {});
  add("hot", [](auto& o) { o.temperature = 2.5F; });
  add("cold", [](auto& o) { o.temperature = 0.3F; });
  add("top-k", [](auto& o) { o.top_k = 5; });
  add("top-p", [](auto& o) { o.top_p = 0.7F; });
  add("min-p", [](auto& o) { o.min_p = 0.25F; });
  add("typical", [](auto& o) { o.typical_p = 0.6F; });
  add("bias", [](auto& o) { o.logit_bias = {{3, 2.0F}, {4, -inf}, {3, -0.5F}}; });
  add("repetition", [](auto& o) { o.repetition_penalty = 1.7F; });
  add("repetition reversed", [](auto& o) { o.repetition_penalty = 0.6F; });
  add("frequency", [](auto& o) { o.frequency_penalty = 0.4F; });
  add("presence", [](auto& o) { o.presence_penalty = -0.9F; });
  add("default", [](auto& o) { o = sampler_options{}; });
  add("all", [](auto& o) {
    o.temperature = 1.3F;
    o.top_k = 9;
    o.typical_p = 0.9F;
    o.top_p = 0.85F;
    o.min_p = 0.1F;
    o.repetition_penalty = 1.2F;
    o.frequency_penalty = 0.2F;
    o.presence_penalty = 0.1F;
    o.penalty_window = 5;
    o.logit_bias = {{0, 1.0F}};
  });
  const std::vector<token_id> history = {1, 1, 2, 7, 7, 7, 11, 0, 1};
  for (const named& c : cases) {
    INFO(c.name);
    check_against_reference(logits, c.options, 4000, history);
  }
}

TEST_CASE("random options on random logits agree with the formulas", "[sampler]") {
  numbers random(99);
  for (int round = 0; round < 400; ++round) {
    const std::size_t n = 2 + static_cast<std::size_t>(random.below(40));
    std::vector<float> logits = random_logits(n, random.bits(), random.between(0.1, 6));
    for (float& l : logits)
      if (random.below(8) == 0) l = -inf;
    logits[0] = 0.5F;
    sampler_options o = plain();
    o.seed = random.bits();
    o.temperature = random.between(0.2, 2);
    if (random.below(2)) o.top_k = 2 + random.below(50);
    if (random.below(2)) o.top_p = random.between(0, 1);
    if (random.below(2)) o.min_p = random.between(0, 0.5);
    if (random.below(2)) o.typical_p = random.between(0, 1);
    if (random.below(2)) o.repetition_penalty = random.between(0.5, 2);
    if (random.below(2)) o.frequency_penalty = random.between(-1, 1);
    if (random.below(2)) o.presence_penalty = random.between(-1, 1);
    o.penalty_window = random.below(12) - 1;
    std::vector<token_id> history;
    for (int i = random.below(30); i > 0; --i) history.push_back(random.below(static_cast<std::int32_t>(n)));
    CAPTURE(round, n, o.top_k, o.top_p, o.min_p, o.typical_p, o.temperature, o.penalty_window);
    check_against_reference(logits, o, 60, history);
  }
}

TEST_CASE("large vocabularies: selection without a full sort keeps the exact sets", "[sampler]") {
  const std::size_t n = 20000;
  numbers random(5);
  std::vector<float> logits(n);
  for (float& l : logits) l = static_cast<float>(random.below(300)) / 50.0F;  // many ties
  const auto option = [&](auto&& change) {
    sampler_options o = plain();
    o.seed = 3;
    change(o);
    return o;
  };
  // The reference is slow for typical, so that has its own, smaller case.
  check_against_reference(logits, option([](auto& o) { o.top_k = 777; }), 300);
  check_against_reference(logits, option([](auto& o) { o.top_k = 1999, o.top_p = 0.5F; }), 300);
  check_against_reference(logits, option([](auto& o) { o.top_p = 0.9F; }), 300);
  check_against_reference(logits, option([](auto& o) { o.top_p = 0.999F, o.min_p = 0.3F; }), 300);
  check_against_reference(logits, option([](auto& o) { o.min_p = 0.9F; }), 300);
  check_against_reference(random_logits(3000, 8), option([](auto& o) { o.typical_p = 0.8F; }), 300);
  // Ascending and descending logits are the worst and the best case of the running selection.
  for (std::size_t i = 0; i < n; ++i) logits[i] = static_cast<float>(i) * 1e-3F;
  check_against_reference(logits, option([](auto& o) { o.top_k = 50; }), 100);
  std::reverse(logits.begin(), logits.end());
  check_against_reference(logits, option([](auto& o) { o.top_k = 50; }), 100);
}

TEST_CASE("greedy takes the largest logit, the lowest id of equals", "[sampler]") {
  sampler s = std::move(sampler::create(sampler_options::greedy())).value();
  CHECK(*s.choose(std::vector<float>{1, 5, 5, 2}) == 1);
  CHECK(*s.choose(std::vector<float>{-inf, -inf, -3, -inf}) == 2);
  CHECK(*s.choose(std::vector<float>{0, 0, 0}) == 0);
  sampler_options o = sampler_options::greedy();
  o.logit_bias = {{1, -inf}, {3, 10.0F}};
  s = std::move(sampler::create(o)).value();
  CHECK(*s.choose(std::vector<float>{1, 5, 5, 2}) == 3);
  o.logit_bias = {{1, -inf}};
  s = std::move(sampler::create(o)).value();
  CHECK(*s.choose(std::vector<float>{1, 5, 5, 2}) == 2);
  // The same by other means: one token kept whatever is drawn.
  for (auto&& change : {+[](sampler_options& x) { x.top_k = 1; }, +[](sampler_options& x) { x.top_p = 0; },
                        +[](sampler_options& x) { x.min_p = 1; }}) {
    sampler_options one = plain();
    change(one);
    sampler t = std::move(sampler::create(one)).value();
    for (int i = 0; i < 50; ++i) CHECK(*t.choose(std::vector<float>{0.0F, 1.0F, 1.001F, 0.5F}) == 2);
  }
  // Temperatures so small or large that naive arithmetic overflows.
  sampler_options tiny = plain();
  tiny.temperature = std::numeric_limits<float>::denorm_min();
  sampler t = std::move(sampler::create(tiny)).value();
  CHECK(*t.choose(std::vector<float>{-1e30F, 3e38F, -3e38F}) == 1);
  tiny.temperature = std::numeric_limits<float>::max();
  t = std::move(sampler::create(tiny)).value();
  std::map<token_id, int> seen;
  for (int i = 0; i < 300; ++i) ++seen[*t.choose(std::vector<float>{-30.0F, 3.0F, 30.0F})];
  CHECK(seen.size() == 3);
}

TEST_CASE("penalties look at the window alone", "[sampler]") {
  sampler_options o = sampler_options::greedy();
  o.presence_penalty = 10;
  o.penalty_window = 2;
  sampler s = std::move(sampler::create(o)).value();
  const std::vector<float> logits = {3, 2, 1, 0};
  std::vector<token_id> chosen;
  for (int i = 0; i < 7; ++i) {
    chosen.push_back(*s.choose(logits));
    REQUIRE(s.accept(chosen.back()));
  }
  CHECK(chosen == std::vector<token_id>{0, 1, 2, 0, 1, 2, 0});
  REQUIRE(s.accept(1000000));  // unknown to these logits: no harm
  CHECK(*s.choose(logits) == 1);
  s.reset();
  CHECK(*s.choose(logits) == 0);

  o.penalty_window = -1;
  s = std::move(sampler::create(o)).value();
  chosen.clear();
  for (int i = 0; i < 5; ++i) {
    chosen.push_back(*s.choose(logits));
    REQUIRE(s.accept(chosen.back()));
  }
  CHECK(chosen == std::vector<token_id>{0, 1, 2, 3, 0});
  CHECK(s.accept(-1).error().code == errc::invalid_argument);
}

TEST_CASE("sampling refuses what it cannot use", "[sampler]") {
  const auto refused = [](auto&& change) {
    sampler_options o;
    change(o);
    const result<sampler> s = sampler::create(o);
    return !s && s.error().code == errc::invalid_argument && !s.error().where.empty();
  };
  CHECK(refused([](auto& o) { o.temperature = -1; }));
  CHECK(refused([](auto& o) { o.temperature = nan; }));
  CHECK(refused([](auto& o) { o.temperature = inf; }));
  CHECK(refused([](auto& o) { o.top_k = -1; }));
  CHECK(refused([](auto& o) { o.top_p = -0.1F; }));
  CHECK(refused([](auto& o) { o.top_p = 1.1F; }));
  CHECK(refused([](auto& o) { o.top_p = nan; }));
  CHECK(refused([](auto& o) { o.min_p = 2; }));
  CHECK(refused([](auto& o) { o.typical_p = nan; }));
  CHECK(refused([](auto& o) { o.repetition_penalty = 0; }));
  CHECK(refused([](auto& o) { o.repetition_penalty = inf; }));
  CHECK(refused([](auto& o) { o.frequency_penalty = nan; }));
  CHECK(refused([](auto& o) { o.presence_penalty = inf; }));
  CHECK(refused([](auto& o) { o.penalty_window = -2; }));
  CHECK(refused([](auto& o) { o.logit_bias = {{-1, 0.0F}}; }));
  CHECK(refused([](auto& o) { o.logit_bias = {{1, nan}}; }));
  CHECK(refused([](auto& o) { o.logit_bias = {{1, inf}}; }));

  const auto code = [](sampler_options o, std::vector<float> logits) {
    sampler s = std::move(sampler::create(std::move(o))).value();
    const result<token_id> id = s.choose(logits);
    return id ? errc::internal : id.error().code;
  };
  for (const sampler_options& o : {plain(), sampler_options{}, sampler_options::greedy()}) {
    CHECK(code(o, {}) == errc::invalid_argument);
    CHECK(code(o, {1, nan, 2}) == errc::invalid_argument);
    CHECK(code(o, {1, inf, 2}) == errc::invalid_argument);
    CHECK(code(o, {-inf, -inf}) == errc::invalid_argument);
    sampler_options biased = o;
    biased.logit_bias = {{2, 1.0F}};
    CHECK(code(biased, {1, 2}) == errc::invalid_argument);
    biased.logit_bias = {{0, -inf}, {1, -inf}};
    CHECK(code(biased, {1, 2}) == errc::invalid_argument);
    biased.logit_bias = {{0, 3e38F}};
    CHECK(code(biased, {3e38F, 2}) == errc::invalid_argument);  // overflows
  }
}

TEST_CASE("the same tokens on every machine", "[sampler]") {
  // Recorded once: what changes this, changes what every user's seed gives.
  const std::vector<float> logits = random_logits(1000, 42, 4);
  const auto run = [&](sampler_options o) {
    sampler s = std::move(sampler::create(std::move(o))).value();
    std::vector<token_id> ids;
    for (int i = 0; i < 8; ++i) {
      ids.push_back(*s.choose(logits));
      REQUIRE(s.accept(ids.back()));
    }
    return ids;
  };
  sampler_options o;
  o.seed = 1234;
  CHECK(run(o) == std::vector<token_id>{951, 828, 242, 774, 222, 709, 587, 450});
  o.top_k = 0;
  o.typical_p = 0.7F;
  o.repetition_penalty = 1.3F;
  o.temperature = 1.5F;
  CHECK(run(o) == std::vector<token_id>{793, 73, 132, 176, 282, 707, 228, 831});
}

TEST_CASE("a copied sampler continues alike", "[sampler]") {
  sampler_options o = plain();
  o.frequency_penalty = 0.5F;
  o.penalty_window = 3;
  sampler a = std::move(sampler::create(o)).value();
  const std::vector<float> logits = random_logits(30, 1);
  for (int i = 0; i < 10; ++i) REQUIRE(a.accept(*a.choose(logits)));
  sampler b = a;
  for (int i = 0; i < 10; ++i) {
    const token_id x = *a.choose(logits);
    CHECK(x == *b.choose(logits));
    REQUIRE(a.accept(x));
    REQUIRE(b.accept(x));
  }
}

TEST_CASE("a failed choice or record leaves the sampler as it was", "[sampler]") {
  sampler_options o = plain();
  o.top_p = 0.9F;
  o.typical_p = 0.9F;
  o.frequency_penalty = 0.3F;
  o.penalty_window = 4;
  const std::vector<float> logits = random_logits(100, 2);
  std::vector<token_id> ids;
  {
    sampler s = std::move(sampler::create(o)).value();
    for (int i = 0; i < 20; ++i) {
      ids.push_back(*s.choose(logits));
      REQUIRE(s.accept(ids.back()));
    }
  }
  sampler s = std::move(sampler::create(o)).value();
  std::uint64_t failures = 0;
  for (int i = 0; i < 20; ++i) {
    CHECK(s.choose(std::vector<float>{nan}).error().code == errc::invalid_argument);
    token_id id = -1;
    for (std::uint64_t n = 0; id < 0; ++n) {
      const fail_allocations guard(n);
      const result<token_id> r = s.choose(logits);
      if (r)
        id = *r;
      else
        failures += r.error().code == errc::out_of_memory;
    }
    CHECK(id == ids[static_cast<std::size_t>(i)]);
    for (std::uint64_t n = 0;; ++n) {
      const fail_allocations guard(n);
      const result<void> r = s.accept(id);
      if (r) break;
      failures += r.error().code == errc::out_of_memory;
    }
  }
  CHECK(failures >= 5);
  // From then on nothing is allocated.
  const std::uint64_t before = allocation_count();
  for (int i = 0; i < 20; ++i) {
    const token_id id = *s.choose(logits);
    (void)s.accept(id);
  }
  CHECK(allocation_count() == before);
}

TEST_CASE("log-probabilities agree with the formula", "[sampler]") {
  const std::vector<float> logits = random_logits(1001, 4, 20);
  long double total = 0;
  for (const float l : logits) total += std::exp(static_cast<long double>(l));
  std::vector<token_id> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](token_id a, token_id b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  for (const token_id id : {0, 17, 1000}) {
    const long double want = static_cast<long double>(logits[static_cast<std::size_t>(id)]) - std::log(total);
    CHECK(std::abs(static_cast<double>(want) - log_probability(logits, id)) < 1e-13);
  }
  const std::vector<token_probability> top = std::move(top_probabilities(logits, 20)).value();
  REQUIRE(top.size() == 20);
  for (std::size_t i = 0; i < top.size(); ++i) {
    CHECK(top[i].id == order[i]);
    CHECK(top[i].logprob == static_cast<float>(log_probability(logits, order[i])));
  }
  CHECK(top_probabilities(std::vector<float>{1, 2}, 5)->size() == 2);
  CHECK(top_probabilities(std::vector<float>{}, 5)->empty());
  CHECK(top_probabilities(logits, 0)->empty());
  const std::vector<token_probability> ties =
      std::move(top_probabilities(std::vector<float>{1, 2, 2, 0, 2}, 2)).value();
  CHECK((ties[0].id == 1 && ties[1].id == 2));
  CHECK(log_probability(std::vector<float>{0, -inf}, 1) == -inf);
  CHECK(log_probability(std::vector<float>{0, -inf}, 0) == 0);
  CHECK(log_probability(std::vector<float>{-1e30F, 3e38F}, 1) == 0);
  CHECK(std::isnan(log_probability(std::vector<float>{1, nan}, 0)));
}

}  // namespace
}  // namespace flywheel
