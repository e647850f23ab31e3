// Every merge method against its formula, written down a second time in double precision over whole tensors.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "flywheel/adapt/merge/combination.hpp"
#include "flywheel/adapt/merge/method.hpp"
#include "flywheel/adapt/merge/selection.hpp"
#include "flywheel/adapt/merge_models.hpp"
#include "support/catch.hpp"

namespace {

namespace adapt = flywheel::adapt;
namespace merge = flywheel::adapt::merge;
using vec = std::vector<double>;
using numbers = std::map<std::string, vec>;

/// f32 arithmetic against f64, of the largest value: a handful of roundings of 6e-8.
constexpr double formula_tolerance = 1e-6;

struct inputs {
  std::int64_t rows = 7, cols = 12;
  std::vector<std::vector<float>> models;
  std::vector<float> base;

  /// Multiples of 1/8, so that equal magnitudes and zeros are among differences.
  explicit inputs(std::size_t n, std::int64_t r = 7, std::int64_t c = 12) : rows(r), cols(c) {
    const auto value = [](std::uint64_t seed, std::uint64_t i) {
      return static_cast<float>(std::floor(merge::uniform(7, seed, i) * 33) - 16) / 8;
    };
    for (std::size_t m = 0; m <= n; ++m) {
      std::vector<float> x(static_cast<std::size_t>(rows * cols));
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = value(m, i);
      if (m < n)
        models.push_back(std::move(x));
      else
        base = std::move(x);
    }
  }
  [[nodiscard]] std::size_t size() const { return base.size(); }
  [[nodiscard]] vec delta(std::size_t m) const {
    vec d(size());
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = static_cast<double>(models[m][i] - base[i]);
    return d;
  }
  [[nodiscard]] vec model(std::size_t m) const { return {models[m].begin(), models[m].end()}; }
  [[nodiscard]] vec origin() const { return {base.begin(), base.end()}; }
};

constexpr std::uint64_t seed = 42;

std::vector<float> run(const std::string& name, const inputs& in, const numbers& given, bool with_base) {
  const merge::method* how = adapt::find_merge_method(name);
  REQUIRE(how != nullptr);
  vec parameters;
  for (const merge::parameter_info& p : how->parameters) {
    const auto found = given.find(std::string(p.name));
    REQUIRE((found != given.end() || !p.required));
    for (std::size_t m = 0; m < (p.per_model ? in.models.size() : 1); ++m)
      parameters.push_back(found == given.end() ? p.fallback : found->second[std::min(m, found->second.size() - 1)]);
  }
  for (const auto& [key, values] : given)
    REQUIRE(std::any_of(how->parameters.begin(), how->parameters.end(), [&](const auto& p) { return p.name == key; }));
  merge::task what;
  what.name = "t";
  what.elements = static_cast<std::int64_t>(in.size());
  what.cols = in.cols;
  what.models = in.models.size();
  what.base = with_base;
  what.seed = seed;
  what.parameters = parameters;
  REQUIRE((how->refuses == nullptr || how->refuses(what).empty()));
  std::vector<const float*> models;
  for (const auto& m : in.models) models.push_back(m.data());
  std::vector<float> out(in.size());
  merge_tensor(*how, what, models, with_base ? in.base.data() : nullptr, out);
  return out;
}

void check_equal(const std::vector<float>& got, const vec& expected) {
  REQUIRE(got.size() == expected.size());
  double largest = 1, worst = 0;
  for (const double v : expected) largest = std::max(largest, std::abs(v));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double off = std::abs(static_cast<double>(got[i]) - expected[i]);
    worst = std::max(worst, std::isnan(off) ? 1e9 : off);
  }
  CHECK(worst <= formula_tolerance * largest);
}

double dot(const vec& a, const vec& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }
double norm(const vec& a) { return std::sqrt(dot(a, a)); }
vec sum(double ca, const vec& a, double cb, const vec& b) {
  vec made(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) made[i] = ca * a[i] + cb * b[i];
  return made;
}

vec slerp(const vec& a, const vec& b, double t) {
  const double theta = std::acos(dot(a, b) / norm(a) / norm(b));
  return sum(std::sin((1 - t) * theta) / std::sin(theta), a, std::sin(t * theta) / std::sin(theta), b);
}

TEST_CASE("Merge methods have names, formulas and plausible parameters", "[adapt][merge]") {
  const char* const names[] = {"linear",          "slerp",        "nuslerp",          "multislerp",  "karcher",
                               "task_arithmetic", "ties",         "dare_linear",      "dare_ties",   "della",
                               "della_linear",    "breadcrumbs",  "breadcrumbs_ties", "model_stock", "sce",
                               "nearswap",        "arcee_fusion", "passthrough"};
  CHECK(adapt::merge_methods().size() == std::size(names));
  for (const char* name : names) {
    const merge::method* one = adapt::find_merge_method(name);
    REQUIRE(one != nullptr);
    CHECK(one->name == name);
    CHECK_FALSE(one->formula.empty());
    CHECK(one->start != nullptr);
    for (const merge::parameter_info& p : one->parameters) {
      CHECK_FALSE(p.what.empty());
      CHECK((p.least <= p.fallback && p.fallback <= p.most));
    }
  }
  CHECK(adapt::find_merge_method("average") == nullptr);
}

TEST_CASE("Linear combinations", "[adapt][merge]") {
  const inputs in(3);
  const vec w = {0.5, 1, 2};
  vec weighted(in.size());
  for (std::size_t m = 0; m < 3; ++m) weighted = sum(1, weighted, w[m], in.model(m));
  check_equal(run("linear", in, {{"weight", w}}, false), sum(1 / 3.5, weighted, 0, weighted));
  check_equal(run("linear", in, {{"weight", w}, {"normalize", {0}}}, false), weighted);
  check_equal(run("passthrough", inputs(1), {{"scale", {-2}}}, false), sum(-2, inputs(1).model(0), 0, weighted));
}

TEST_CASE("Spherical interpolation", "[adapt][merge]") {
  const inputs one(1), two(2);
  check_equal(run("slerp", one, {{"t", {0.3}}}, true), slerp(one.origin(), one.model(0), 0.3));
  inputs near = one;  // nearly the same direction: linear
  for (std::size_t i = 0; i < near.size(); ++i) near.models[0][i] = 2 * near.base[i] + (i == 0 ? 0.01F : 0.0F);
  check_equal(run("slerp", near, {{"t", {0.3}}}, true), sum(0.7, near.origin(), 0.3, near.model(0)));

  const numbers w = {{"weight", {1, 3}}};
  check_equal(run("nuslerp", two, w, false), slerp(two.model(0), two.model(1), 0.75));
  check_equal(run("nuslerp", two, w, true), sum(1, two.origin(), 1, slerp(two.delta(0), two.delta(1), 0.75)));
  for (const bool columns : {false, true}) {
    const auto rows = static_cast<std::size_t>(two.rows), cols = static_cast<std::size_t>(two.cols);
    const vec a = two.delta(0), b = two.delta(1);
    vec expected = two.origin();
    for (std::size_t v = 0; v < (columns ? cols : rows); ++v) {
      std::vector<std::size_t> at;
      for (std::size_t k = 0; k < (columns ? rows : cols); ++k) at.push_back(columns ? k * cols + v : v * cols + k);
      vec va, vb;
      for (const std::size_t i : at) va.push_back(a[i]), vb.push_back(b[i]);
      const vec s = slerp(va, vb, 0.75);
      for (std::size_t k = 0; k < at.size(); ++k) expected[at[k]] += s[k];
    }
    numbers p = w;
    p["nuslerp_flatten"] = {0};
    p["nuslerp_row_wise"] = {columns ? 1.0 : 0.0};
    check_equal(run("nuslerp", two, p, true), expected);
  }
}

TEST_CASE("Means on the sphere", "[adapt][merge]") {
  const inputs in(3);
  const vec w = {0.2, 0.3, 0.5};
  // With the step in the tangent space that multislerp.hpp leaves out.
  std::vector<vec> u;
  vec mean(in.size()), tangent(in.size());
  double length = 0;
  for (std::size_t m = 0; m < 3; ++m) {
    const vec d = in.delta(m);
    u.push_back(sum(1 / (norm(d) + 1e-8), d, 0, d));
    mean = sum(1, mean, w[m], u[m]);
    length += w[m] * norm(d);
  }
  mean = sum(1 / norm(mean), mean, 0, mean);
  for (std::size_t m = 0; m < 3; ++m) tangent = sum(1, tangent, w[m], sum(1, u[m], -dot(u[m], mean), mean));
  const double step = norm(tangent) + 1e-8;
  vec expected = sum(length * std::cos(step), mean, length * std::sin(step) / step, tangent);
  check_equal(run("multislerp", in, {{"weight", {2, 3, 5}}}, true), sum(1, expected, 1, in.origin()));

  u.clear();
  vec centre(in.size());
  length = 0;
  for (std::size_t m = 0; m < 3; ++m) {
    const vec x = in.model(m);
    u.push_back(sum(1 / norm(x), x, 0, x));
    centre = sum(1, centre, 1.0 / 3, u[m]);
    length += norm(x) / 3;
  }
  centre = sum(1 / norm(centre), centre, 0, centre);
  for (int i = 0; i < 3; ++i) {
    vec t(in.size());
    for (const vec& one : u) {
      const double cosine = dot(centre, one), theta = std::acos(cosine);
      t = sum(1, t, theta / std::sin(theta) / 3, sum(1, one, -cosine, centre));
    }
    const double size = norm(t);
    centre = sum(std::cos(size), centre, std::sin(size) / size, t);
    centre = sum(1 / norm(centre), centre, 0, centre);
  }
  check_equal(run("karcher", in, {{"max_iter", {3}}, {"tol", {1e-12}}}, false), sum(length, centre, 0, centre));
}

TEST_CASE("Model stock, nearswap and fusion", "[adapt][merge]") {
  const inputs in(3), one(1);
  const auto rows = static_cast<std::size_t>(in.rows), cols = static_cast<std::size_t>(in.cols);
  for (const bool rowwise : {false, true}) {
    vec expected(in.size());
    for (std::size_t r = 0; r < (rowwise ? rows : 1); ++r) {
      const std::size_t first = rowwise ? r * cols : 0, n = rowwise ? cols : in.size();
      std::vector<vec> d;
      for (std::size_t m = 0; m < 3; ++m) {
        const vec whole = in.delta(m);
        d.emplace_back(whole.begin() + static_cast<std::ptrdiff_t>(first),
                       whole.begin() + static_cast<std::ptrdiff_t>(first + n));
      }
      double c = 0;
      for (const auto& [i, j] : {std::pair{0, 1}, {0, 2}, {1, 2}}) {
        const vec &a = d[static_cast<std::size_t>(i)], &b = d[static_cast<std::size_t>(j)];
        c += dot(a, b) / norm(a) / norm(b) / 3;
      }
      const double t = 3 * c / (1 + 2 * c);
      for (std::size_t i = 0; i < n; ++i)
        expected[first + i] = static_cast<double>(in.base[first + i]) + t * (d[0][i] + d[1][i] + d[2][i]) / 3;
    }
    check_equal(run("model_stock", in, {{"filter_wise", {rowwise ? 1.0 : 0.0}}}, true), expected);
  }

  vec near = one.origin();
  for (std::size_t i = 0; i < near.size(); ++i) {
    const double d = one.delta(0)[i];
    near[i] += std::min(0.5 / std::max(std::abs(d), 1e-6), 1.0) * d;
  }
  check_equal(run("nearswap", one, {{"t", {0.5}}}, true), near);

  vec scores(one.size());
  for (std::size_t r = 0; r < rows; ++r) {
    double px = 0, pb = 0, kl = 0;
    for (std::size_t i = r * cols; i < (r + 1) * cols; ++i)
      px += std::exp(one.model(0)[i]), pb += std::exp(one.origin()[i]);
    for (std::size_t i = r * cols; i < (r + 1) * cols; ++i) {
      const double p = std::exp(one.model(0)[i]) / px + 1e-8, q = std::exp(one.origin()[i]) / pb + 1e-8;
      kl += p * std::log(p / q);
    }
    for (std::size_t i = r * cols; i < (r + 1) * cols; ++i) scores[i] = std::abs(one.delta(0)[i]) * kl;
  }
  vec sorted = scores;
  std::sort(sorted.begin(), sorted.end());
  const auto at = [&](double q) {
    return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
  };
  const double threshold = at(0.5) + 1.5 * (at(0.75) - at(0.25));
  vec fused = one.origin();
  for (std::size_t i = 0; i < fused.size(); ++i)
    if (scores[i] >= threshold) fused[i] = one.model(0)[i];
  CHECK(fused != one.origin());
  check_equal(run("arcee_fusion", one, {}, true), fused);
}

/// Indices by magnitude, largest first, of equal ones the lower index first.
std::vector<std::size_t> order_of(const vec& d) {
  std::vector<std::size_t> order(d.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return std::abs(d[a]) > std::abs(d[b]); });
  return order;
}

struct task_vector_case {
  std::vector<vec> kept;  ///< Thinned deltas.
  vec weights = {1, -0.5, 2};
  bool elect = false, normalize = false;
  double lambda = 1;
};

vec consensus_of(const inputs& in, const task_vector_case& c) {
  vec out = in.origin();
  for (std::size_t i = 0; i < out.size(); ++i) {
    double vote = 0, mixed = 0, divisor = 0;
    for (std::size_t m = 0; m < c.kept.size(); ++m) vote += c.weights[m] * c.kept[m][i];
    for (std::size_t m = 0; m < c.kept.size(); ++m) {
      const double v = c.weights[m] * c.kept[m][i];
      if (c.elect && !(vote >= 0 ? v > 0 : v < 0)) continue;
      mixed += v;
      divisor += c.weights[m];
    }
    out[i] += c.lambda * mixed / (c.normalize && divisor != 0 ? divisor : 1);
  }
  return out;
}

vec scaled_to(const vec& kept, const vec& whole, double rescale_norm, double density) {
  double before = 0, after = 0;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    before += std::pow(std::abs(whole[i]), rescale_norm);
    after += std::pow(std::abs(kept[i]), rescale_norm);
  }
  const double factor = rescale_norm == 0 ? 1 / density : std::pow(before / after, 1 / rescale_norm);
  return sum(factor, kept, 0, kept);
}

TEST_CASE("Task vectors: what is kept, elected and divided by", "[adapt][merge]") {
  const vec densities = {0.3, 0.55, 0.8}, gammas = {0, 0.1, 0.5}, epsilons = {0.1, 0.2, 0.15};
  // One slice; and several, with ties across their borders.
  for (const auto& [rows, cols] : {std::pair{7, 12}, {301, 500}}) {
    const inputs in(3, rows, cols);
    const auto n = in.size();
    const auto keep_ranks = [&](std::size_t m, std::size_t first, std::size_t last) {
      const vec d = in.delta(m);
      const auto order = order_of(d);
      vec kept(n);
      for (std::size_t r = first; r < last; ++r) kept[order[r]] = d[order[r]];
      return kept;
    };
    const auto share = [&](double part) { return static_cast<std::size_t>(part * static_cast<double>(n)); };
    task_vector_case arithmetic, ties, crumbs, dare, della;
    for (std::size_t m = 0; m < 3; ++m) {
      const vec d = in.delta(m);
      arithmetic.kept.push_back(d);
      ties.kept.push_back(keep_ranks(m, 0, share(densities[m])));
      const std::size_t top = std::min(share(gammas[m]), n - share(densities[m]));
      crumbs.kept.push_back(keep_ranks(m, top, top + share(densities[m])));
      vec chosen(n), ranked(n);
      for (std::size_t i = 0; i < n; ++i)
        if (merge::uniform(seed, m, i) < densities[m]) chosen[i] = d[i];
      const auto width = static_cast<std::size_t>(in.cols);
      for (std::size_t r = 0; r < static_cast<std::size_t>(in.rows); ++r) {
        const vec row(d.begin() + static_cast<std::ptrdiff_t>(r * width),
                      d.begin() + static_cast<std::ptrdiff_t>((r + 1) * width));
        const auto order = order_of(row);
        for (std::size_t k = 0; k < width; ++k) {
          const double rank = static_cast<double>(width - 1 - k) / static_cast<double>(width - 1);
          const std::size_t i = r * width + order[k];
          if (merge::uniform(seed, m, i) < densities[m] - epsilons[m] + 2 * epsilons[m] * rank) ranked[i] = d[i];
        }
      }
      dare.kept.push_back(scaled_to(chosen, d, 1, 0));
      della.kept.push_back(scaled_to(ranked, d, 1, 0));
    }
    const numbers base = {{"weight", arithmetic.weights}, {"density", densities}};
    const auto with = [&](numbers more) {
      more.insert(base.begin(), base.end());
      return more;
    };
    arithmetic.lambda = 0.7;
    check_equal(run("task_arithmetic", in, {{"weight", arithmetic.weights}, {"lambda", {0.7}}}, true),
                consensus_of(in, arithmetic));
    arithmetic.normalize = true;
    check_equal(
        run("task_arithmetic", in, {{"weight", arithmetic.weights}, {"lambda", {0.7}}, {"normalize", {1}}}, true),
        consensus_of(in, arithmetic));

    ties.elect = ties.normalize = true;
    check_equal(run("ties", in, base, true), consensus_of(in, ties));
    task_vector_case rescaled = ties;
    for (const double how : {0.0, 1.0, 2.0}) {
      for (std::size_t m = 0; m < 3; ++m) rescaled.kept[m] = scaled_to(ties.kept[m], in.delta(m), how, densities[m]);
      check_equal(run("ties", in, with({{"rescale", {1}}, {"rescale_norm", {how}}}), true), consensus_of(in, rescaled));
    }
    ties.normalize = false;
    check_equal(run("ties", in, with({{"normalize", {0}}, {"int8_mask", {1}}}), true), consensus_of(in, ties));

    check_equal(run("breadcrumbs", in, with({{"gamma", gammas}}), true), consensus_of(in, crumbs));
    crumbs.elect = true;
    check_equal(run("breadcrumbs_ties", in, with({{"gamma", gammas}}), true), consensus_of(in, crumbs));

    check_equal(run("dare_linear", in, base, true), consensus_of(in, dare));
    dare.elect = true;
    check_equal(run("dare_ties", in, base, true), consensus_of(in, dare));

    check_equal(run("della_linear", in, with({{"epsilon", epsilons}}), true), consensus_of(in, della));
    della.elect = della.normalize = true;
    check_equal(run("della", in, with({{"epsilon", epsilons}}), true), consensus_of(in, della));
  }
}

TEST_CASE("SCE selects, weighs and erases", "[adapt][merge]") {
  for (const auto& [rows, cols] : {std::pair{7, 12}, {301, 500}}) {
    const inputs in(3, rows, cols);
    const std::size_t n = in.size();
    vec variance(n);
    const vec deltas[] = {in.delta(0), in.delta(1), in.delta(2)};
    for (std::size_t i = 0; i < n; ++i) {
      double total = 0, squares = 0;  // inputs are multiples of 1/8: nothing is rounded
      for (const vec& d : deltas) total += d[i], squares += d[i] * d[i];
      variance[i] = 3 * squares - total * total;  // times 9
    }
    const auto varied =
        static_cast<std::size_t>(std::count_if(variance.begin(), variance.end(), [](double v) { return v > 0; }));
    for (const double share : {0.4, 1.0}) {
      const auto order = order_of(variance);
      std::vector<bool> selected(n, share == 1);
      for (std::size_t k = 0; share < 1 && k < static_cast<std::size_t>(share * static_cast<double>(varied)); ++k)
        selected[order[k]] = true;
      std::vector<vec> d;
      vec weights;
      for (std::size_t m = 0; m < 3; ++m) {
        d.push_back(in.delta(m));
        for (std::size_t i = 0; i < n; ++i)
          if (!selected[i]) d[m][i] = 0;
        weights.push_back(dot(d[m], d[m]));
      }
      const double total = weights[0] + weights[1] + weights[2];
      vec expected = in.origin();
      for (std::size_t i = 0; i < n; ++i) {
        const double vote = d[0][i] + d[1][i] + d[2][i];
        double mixed = 0, divisor = 0;
        for (std::size_t m = 0; m < 3; ++m)
          if (vote >= 0 ? d[m][i] > 0 : d[m][i] < 0)
            mixed += weights[m] / total * d[m][i], divisor += weights[m] / total;
        if (divisor > 0) expected[i] += mixed / divisor;
      }
      check_equal(run("sce", in, {{"select_topk", {share}}}, true), expected);
    }
  }
}

TEST_CASE("Methods agree where they must", "[adapt][merge]") {
  const inputs in(3);
  const numbers w = {{"weight", {1, 1, 1}}};
  const std::vector<float> plain = run("task_arithmetic", in, w, true);
  for (const char* name : {"dare_linear", "della_linear", "breadcrumbs"}) {
    CAPTURE(name);
    CHECK(run(name, in, w, true) == plain);  // density 1
  }
  inputs same = in;
  for (auto& m : same.models) m = same.base;
  for (const merge::method* how : adapt::merge_methods()) {
    CAPTURE(how->name);
    inputs few = same;
    few.models.resize(std::min(few.models.size(), how->max_models));
    numbers p;
    for (const merge::parameter_info& one : how->parameters)
      if (one.required) p[std::string(one.name)] = {1};
    check_equal(run(std::string(how->name), few, p, how->base == merge::base_use::required), in.origin());
  }
  // Weights of one sign: one model alone is what elections leave of it.
  inputs one = in;
  one.models.resize(1);
  check_equal(run("ties", one, {{"weight", {1}}}, true), one.model(0));
  // With gamma 0 nothing is dropped from above.
  const numbers most = {{"weight", {1}}, {"density", {0.9}}};
  numbers crumbs = most;
  crumbs["gamma"] = {0};
  CHECK(run("breadcrumbs", one, crumbs, true) == run("ties", one, most, true));
  // Nor with a gamma of less than one element.
  inputs small(1, 8, 8);
  CHECK(run("breadcrumbs", small, most, true) == run("ties", small, most, true));
  // What is accepted without effect.
  CHECK(run("task_arithmetic", in, {{"weight", {1, 1, 1}}, {"density", {0.3}}, {"rescale", {1}}}, true) == plain);
  // One model that is not the base.
  for (const merge::method* how : adapt::merge_methods()) {
    if (how->min_models > 1) continue;
    CAPTURE(how->name);
    numbers p;
    for (const merge::parameter_info& q : how->parameters)
      if (q.required) p[std::string(q.name)] = {q.name == "t" && how->name == "nearswap" ? 1e9 : 1};
    const bool based = how->base == merge::base_use::required;
    if (how->name == "arcee_fusion") continue;  // of one element there are no quartiles apart
    for (const inputs& alone : {one, inputs(1, 1, 1)})
      check_equal(run(std::string(how->name), alone, p, based), alone.model(0));
  }
  for (const char* name : {"karcher", "multislerp"}) {  // however small, and whatever the weight
    inputs tiny = one;
    for (float& x : tiny.models[0]) x *= 1e-9F;
    numbers p;
    if (std::string(name) == "multislerp") p = {{"weight", {0}}};
    CHECK(run(name, tiny, p, false) == tiny.models[0]);
  }
  // Nothing is kept.
  for (const char* name :
       {"ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"})
    CHECK(run(name, in, {{"weight", {1}}, {"density", {0}}}, true) == in.base);
  CHECK(run("sce", in, {{"select_topk", {0}}}, true) == in.base);
}

TEST_CASE("SCE does not select rounding", "[adapt][merge]") {
  for (const std::size_t n : {3U, 5U, 7U}) {
    inputs in(n, 16, 16);
    for (std::size_t i = 0; i < in.size(); ++i)
      for (auto& x : in.models) x[i] = in.base[i] + static_cast<float>(0.1 + merge::uniform(1, 0, i));
    in.models[0][100] += 1;  // the only one that varies
    const std::vector<float> out = run("sce", in, {{"select_topk", {0.999}}}, true);
    for (std::size_t i = 0; i < in.size(); ++i) CHECK((out[i] == in.base[i]));
    const std::vector<float> all = run("sce", in, {{"select_topk", {1}}}, true);
    CHECK(all != in.base);
  }
}

TEST_CASE("Small differences add up before they meet the base", "[adapt][merge]") {
  // Each is 0.3 of the last bit of 1.
  const float x = 1 + 0x1p-23F, base = 1;
  const float* const models[] = {&x, &x, &x, &x};
  const double c[] = {0.3, 0.3, 0.3, 0.3};
  float out = 0;
  merge::combine_linearly(models, c, &base, 1, &out);
  CHECK(out == x);
  // Nearly opposite: coefficients of 1e6 whose sum is what counts.
  const float up = 0.3F, down = -0.3F;
  const float* const pair[] = {&up, &down};
  const double large[] = {1e7 + 1, 1e7};
  merge::combine_linearly(pair, large, nullptr, 1, &out);
  CHECK(std::abs(out - up) < 1e-6F);
}

TEST_CASE("Interpolation beyond its ends, and of nothing", "[adapt][merge]") {
  const inputs one(1);
  for (const double t : {-0.5, 1.25})
    check_equal(run("slerp", one, {{"t", {t}}}, true), slerp(one.origin(), one.model(0), t));
  CHECK(run("nearswap", one, {{"t", {-1}}}, true) == one.base);
  inputs none = one;
  std::fill(none.models[0].begin(), none.models[0].end(), 0.0F);
  check_equal(run("slerp", none, {{"t", {0.25}}}, true), sum(0.75, none.origin(), 0, none.origin()));
  inputs two(2);
  std::fill(two.models[0].begin(), two.models[0].end(), 0.0F);
  // At a right angle to everything.
  check_equal(run("nuslerp", two, {{"weight", {1, 1}}}, false), sum(std::sqrt(0.5), two.model(1), 0, two.model(1)));
  std::fill(two.models[1].begin(), two.models[1].end(), 0.0F);
  check_equal(run("nuslerp", two, {{"weight", {1, 1}}}, false), vec(two.size()));
}

TEST_CASE("Random parts have their density, and models have parts of their own", "[adapt][merge]") {
  inputs in(2, 64, 1024);
  const auto n = static_cast<double>(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) {
    in.base[i] = 0;
    in.models[0][i] = 1 + static_cast<float>(i % 1024) / 1024;
    in.models[1][i] = 100 * in.models[0][i];
  }
  for (const auto& [name, elements] : {std::pair{"dare_linear", 1}, {"della_linear", 0}}) {
    CAPTURE(name);
    const auto out = run(name, in, {{"weight", {1}}, {"density", {0.3, 0.6}}, {"rescale", {0}}}, true);
    double first = 0, second = 0, both = 0, upper = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const bool b = out[i] > 50, a = out[i] - (b ? in.models[1][i] : 0.0F) > 0.5F;
      first += a, second += b, both += a && b;
      upper += a && i % 1024 >= 512;
    }
    // Five standard deviations of the binomial distribution.
    const auto near = [n](double count, double p) { return std::abs(count / n - p) < 5 * std::sqrt(p * (1 - p) / n); };
    CHECK(near(first, 0.3));
    CHECK(near(second, 0.6));
    if (elements == 1) {
      CHECK(near(both, 0.18));
      CHECK(near(upper, 0.15));
    } else {
      CHECK(upper > 0.6 * first);  // the larger half
    }
  }
  const auto small_first =
      run("della_linear", in, {{"weight", {1, 0}}, {"density", {0.3}}, {"epsilon", {-0.2}}, {"rescale", {0}}}, true);
  double kept = 0, upper = 0;
  for (std::size_t i = 0; i < in.size(); ++i)
    kept += small_first[i] > 0, upper += small_first[i] > 0 && i % 1024 >= 512;
  CHECK(upper < 0.4 * kept);
  // What makes up for it: the expectation, and the norm.
  for (const auto& [rescale_norm, tolerance] : {std::pair{0.0, 0.02}, {1.0, 1e-4}}) {
    for (const char* name : {"dare_linear", "della_linear"}) {
      const auto out = run(
          name, in, {{"weight", {1, 0}}, {"density", {0.3}}, {"rescale", {1}}, {"rescale_norm", {rescale_norm}}}, true);
      double whole = 0, merged = 0;
      for (std::size_t i = 0; i < out.size(); ++i)
        whole += static_cast<double>(in.models[0][i]), merged += static_cast<double>(out[i]);
      CHECK(std::abs(merged / whole - 1) < tolerance);
    }
  }
}

TEST_CASE("A cut takes ties in the order of their indices, wherever blocks end", "[adapt][merge]") {
  // Ties at every place, a quota at every one of them, blocks of every length.
  const std::size_t n = 40;
  std::vector<std::int32_t> keys(n);
  for (std::size_t i = 0; i < n; ++i) keys[i] = i % 7 == 3 ? 9 : i % 5 == 1 ? 2 : 5;
  std::uint64_t equal = static_cast<std::uint64_t>(std::count(keys.begin(), keys.end(), 5));
  for (std::uint64_t ties = 0; ties <= equal; ++ties)
    for (std::size_t block = 1; block <= n; ++block) {
      merge::cut c;
      c.key = 5, c.ties = ties, c.equal = equal;
      merge::cut_walk walk(c, 0);
      std::uint64_t left = ties;
      bool right = true;
      for (std::size_t first = 0; first < n; first += block) {
        const std::size_t count = std::min(block, n - first);
        std::vector<std::uint32_t> in(count, 77);
        walk.next(keys.data() + first, static_cast<std::int64_t>(count), in.data());
        for (std::size_t i = 0; i < count; ++i) {
          const std::int32_t key = keys[first + i];
          const bool expected = key > 5 || (key == 5 && left > 0);
          if (key == 5 && left > 0) --left;
          right = right && in[i] == (expected ? ~0U : 0U);
        }
      }
      CAPTURE(ties, block);
      CHECK(right);
      // From the middle on, given how many came before.
      const auto before = std::count(keys.begin(), keys.begin() + 20, 5);
      merge::cut_walk late(c, static_cast<double>(before));
      std::vector<std::uint32_t> in(20);
      late.next(keys.data() + 20, 20, in.data());
      std::int64_t still = static_cast<std::int64_t>(ties) - before;
      for (std::size_t i = 0; i < 20; ++i) {
        const bool expected = keys[20 + i] > 5 || (keys[20 + i] == 5 && still-- > 0);
        right = right && in[i] == (expected ? ~0U : 0U);
      }
      CHECK(right);
    }
}

TEST_CASE("Numbers that do not go together are refused", "[adapt][merge]") {
  const auto refused = [](const char* name, std::vector<double> parameters, std::size_t models) {
    merge::task what;
    what.models = models;
    what.parameters = parameters;
    return !adapt::find_merge_method(name)->refuses(what).empty();
  };
  CHECK(refused("linear", {1, -1, 1}, 2));
  CHECK_FALSE(refused("linear", {1, -1, 0}, 2));
  CHECK(refused("multislerp", {1, -1, 1, 1e-8}, 2));
  CHECK(refused("linear", {0.1, 0.2, -0.3, 1}, 3));  // 5.6e-17 in double precision
  CHECK(refused("multislerp", {0.1, 0.2, -0.3, 1, 1e-8}, 3));
  CHECK(refused("linear", {0, 0, 1}, 2));
  CHECK_FALSE(refused("linear", {1e-9, 0, 1}, 2));
  CHECK_FALSE(refused("multislerp", {0, 1, 1e-8}, 1));
  CHECK(refused("della", {1, 0.1, -0.15, 1, 1, 1, 1, 0}, 1));
  CHECK(refused("della", {1, 0.1, 0.15, 1, 1, 1, 1, 0}, 1));
  CHECK(refused("della_linear", {1, 0.9, 0.15, 1, 1, 1, 1, 0}, 1));
  CHECK_FALSE(refused("della", {1, 0.5, 0.15, 1, 1, 1, 1, 0}, 1));
}

}  // namespace
