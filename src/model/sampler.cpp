// The steps of sampler_options. Every sum runs in a fixed order and every selection in a total order (ties: lower id),
// so that results do not depend on the standard library, the compiler or the machine.
#include "flywheel/model/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "flywheel/detail/try.hpp"
#include "src/model/log_sum.hpp"
#include "flywheel/detail/portable_math.hpp"

namespace flywheel::inline v0 {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

error invalid(std::string message, std::string where) {
  return error{errc::invalid_argument, std::move(message), std::move(where)};
}

/// The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
std::uint64_t mix(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

/// Four partial sums, so that the loop vectorises; the order is fixed all the same.
template <class F>
double sum(std::size_t n, F&& term) {
  double part[4] = {0, 0, 0, 0};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (std::size_t j = 0; j < 4; ++j) part[j] += term(i + j);
  for (std::size_t j = 0; i + j < n; ++j) part[j] += term(i + j);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

float largest(std::span<const float> logits) noexcept {
  float part[8];
  std::fill(std::begin(part), std::end(part), -infinity);
  std::size_t i = 0;
  for (; i + 8 <= logits.size(); i += 8)
    for (std::size_t j = 0; j < 8; ++j) part[j] = logits[i + j] > part[j] ? logits[i + j] : part[j];
  for (; i < logits.size(); ++i) part[0] = logits[i] > part[0] ? logits[i] : part[0];
  return *std::max_element(std::begin(part), std::end(part));
}

/// exp in blocks that the compiler vectorises: `in(i)` gives the i-th exponent, `out(i, e)` takes its exponential.
template <class In, class Out>
void exp_all(std::size_t n, In&& in, Out&& out) {
  constexpr std::size_t block = 128;
  double values[block];
  for (std::size_t begin = 0; begin < n; begin += block) {
    const std::size_t count = std::min(block, n - begin);
    for (std::size_t j = 0; j < count; ++j) values[j] = in(begin + j);
    for (std::size_t j = 0; j < count; ++j) values[j] = detail::portable_exp(values[j]);
    for (std::size_t j = 0; j < count; ++j) out(begin + j, values[j]);
  }
}

/// Moves the fewest first elements (in the order `before`) whose weights reach `mass` to the front, in that order, and
/// returns how many they are. Sorts no more of them than needed.
template <class Candidates, class Before>
std::size_t prefix_of_mass(Candidates& all, double mass, Before before) {
  std::size_t begin = 0;
  std::size_t step = 256;
  double reached = 0;
  while (begin < all.size()) {
    const std::size_t end = std::min(all.size(), begin + step);
    const auto at = [&](std::size_t i) { return all.begin() + static_cast<std::ptrdiff_t>(i); };
    if (end < all.size()) std::nth_element(at(begin), at(end), all.end(), before);
    std::sort(at(begin), at(end), before);
    for (; begin < end; ++begin) {
      reached += all[begin].weight;
      if (reached >= mass) return begin + 1;
    }
    step *= 4;
  }
  return all.size();
}

/// More probable first.
constexpr auto by_logit = [](const auto& a, const auto& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
};
/// Smaller key first.
constexpr auto by_key = [](const auto& a, const auto& b) { return a.key != b.key ? a.key < b.key : a.id < b.id; };

}  // namespace

result<sampler> sampler::create(sampler_options options) {
  return detail::guarded([&]() -> result<sampler> {
    const sampler_options& o = options;
    const auto probability = [](float p) { return p >= 0 && p <= 1; };
    if (!(o.temperature >= 0) || !std::isfinite(o.temperature))
      return invalid("must be 0 (greedy) or a positive number", "sampler_options::temperature");
    if (o.top_k < 0) return invalid("must be 0 (off) or positive", "sampler_options::top_k");
    if (!probability(o.top_p)) return invalid("must be between 0 and 1 (off)", "sampler_options::top_p");
    if (!probability(o.min_p)) return invalid("must be between 0 (off) and 1", "sampler_options::min_p");
    if (!probability(o.typical_p)) return invalid("must be between 0 and 1 (off)", "sampler_options::typical_p");
    if (!(o.repetition_penalty > 0) || !std::isfinite(o.repetition_penalty))
      return invalid("must be positive (1: off)", "sampler_options::repetition_penalty");
    if (!std::isfinite(o.frequency_penalty))
      return invalid("must be a finite number (0: off)", "sampler_options::frequency_penalty");
    if (!std::isfinite(o.presence_penalty))
      return invalid("must be a finite number (0: off)", "sampler_options::presence_penalty");
    if (o.penalty_window < -1)
      return invalid("must be -1 (all), 0 (none) or positive", "sampler_options::penalty_window");
    for (const auto& [id, bias] : o.logit_bias) {
      if (id < 0) return invalid("a token id is negative", "sampler_options::logit_bias");
      if (std::isnan(bias) || bias == infinity)
        return invalid("a bias must be finite or -infinity", "sampler_options::logit_bias");
    }
    return sampler(std::move(options));
  });
}

bool sampler::penalizes() const noexcept {
  return options_.penalty_window != 0 && (options_.repetition_penalty != 1.0F || options_.frequency_penalty != 0.0F ||
                                          options_.presence_penalty != 0.0F);
}

result<void> sampler::accept(token_id id) {
  return detail::guarded([&]() -> result<void> {
    if (id < 0) return invalid("a token id is negative", "sampler::accept");
    if (!penalizes()) return {};
    const auto find = [&](token_id wanted) {
      return std::lower_bound(counts_.begin(), counts_.end(), wanted,
                              [](const auto& row, token_id value) { return row.first < value; });
    };
    // Whatever may fail comes first, so that a failure changes nothing.
    const bool bounded = options_.penalty_window > 0;
    const bool full = bounded && window_.size() == static_cast<std::size_t>(options_.penalty_window);
    if (bounded && !full) window_.push_back(id);
    try {
      auto row = find(id);
      if (row == counts_.end() || row->first != id) row = counts_.insert(row, {id, 0});
      if (row->second < std::numeric_limits<std::int32_t>::max()) ++row->second;
    } catch (...) {
      if (bounded && !full) window_.pop_back();
      throw;
    }
    if (full) {
      const auto gone = find(std::exchange(window_[oldest_], id));
      if (--gone->second == 0) counts_.erase(gone);
      oldest_ = (oldest_ + 1) % window_.size();
    }
    return {};
  });
}

void sampler::reset() noexcept {
  window_.clear();
  counts_.clear();
  oldest_ = 0;
  counter_ = 0;
}

result<token_id> sampler::choose(std::span<const float> logits) {
  return detail::guarded([&]() -> result<token_id> {
    if (logits.empty()) return invalid("there are no logits", "sampler::choose");
    FLYWHEEL_TRY(const std::span<const float> changed, modified(logits));
    FLYWHEEL_TRY(const token_id id, pick(changed));
    ++counter_;
    return id;
  });
}

/// Bias and penalties.
result<std::span<const float>> sampler::modified(std::span<const float> logits) {
  const bool penalized = penalizes() && !counts_.empty();
  if (options_.logit_bias.empty() && !penalized) return logits;
  modified_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : options_.logit_bias) {
    if (static_cast<std::size_t>(id) >= modified_.size())
      return invalid("token " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(logits.size()),
                     "sampler_options::logit_bias");
    modified_[static_cast<std::size_t>(id)] += bias;
  }
  if (!penalized) return std::span<const float>(modified_);
  for (const auto& [id, count] : counts_) {
    if (static_cast<std::size_t>(id) >= modified_.size()) break;  // ascending: the rest is unknown, too
    float& logit = modified_[static_cast<std::size_t>(id)];
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    logit -= static_cast<float>(count) * options_.frequency_penalty;
    logit -= options_.presence_penalty;
  }
  return std::span<const float>(modified_);
}

result<token_id> sampler::pick(std::span<const float> logits) {
  bool usable = true;
  for (const float l : logits) usable &= l < infinity;  // false for NaN, too
  if (!usable) return invalid("the logits contain NaN or +infinity", "sampler::choose");
  const float max = largest(logits);
  if (max == -infinity) return invalid("every token is forbidden: all logits are -infinity", "sampler::choose");
  if (options_.temperature == 0.0F || options_.top_k == 1)
    return static_cast<token_id>(std::find(logits.begin(), logits.end(), max) - logits.begin());

  collect(logits);
  if (options_.typical_p < 1.0F || options_.top_p < 1.0F || options_.min_p > 0.0F) weigh(1.0);
  if (options_.typical_p < 1.0F) keep_typical();
  if (options_.top_p < 1.0F || options_.min_p > 0.0F) keep_probable();

  weigh(options_.temperature);
  double total = 0;
  for (const candidate& c : kept_) total += c.weight;
  double left = uniform() * total;
  for (const candidate& c : kept_) {
    if (left < c.weight) return c.id;
    left -= c.weight;
  }
  // Rounding left a sliver behind the last token: it belongs to the last one that can be drawn.
  for (std::size_t i = kept_.size(); i-- > 0;)
    if (kept_[i].weight > 0) return kept_[i].id;
  return kept_.front().id;
}

/// Top-k: fills kept_ with the k most probable tokens, most probable first, or with all that are allowed in order of
/// id.
void sampler::collect(std::span<const float> logits) {
  kept_.clear();
  const std::size_t k = static_cast<std::size_t>(options_.top_k);
  if (k == 0 || k >= logits.size()) {
    kept_.reserve(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i)
      if (logits[i] > -infinity) kept_.push_back({0, logits[i], static_cast<token_id>(i)});
  } else {
    // Collects what beats the k-th best so far and prunes when twice too many have come together. Ids ascend, so an
    // equal logit that comes later loses.
    const std::size_t room = 2 * k + 64;
    kept_.reserve(room);
    float bar = -infinity;
    const auto prune = [&] {
      if (kept_.size() <= k) return;
      const auto end = kept_.begin() + static_cast<std::ptrdiff_t>(k);
      std::nth_element(kept_.begin(), end - 1, kept_.end(), by_logit);
      kept_.erase(end, kept_.end());
      bar = kept_.back().logit;
    };
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] > bar)) continue;
      kept_.push_back({0, logits[i], static_cast<token_id>(i)});
      if (kept_.size() == room) prune();
    }
    prune();
    std::sort(kept_.begin(), kept_.end(), by_logit);
  }
}

void sampler::weigh(double temperature) {
  float max = -infinity;
  for (const candidate& c : kept_) max = std::max(max, c.logit);
  exp_all(
      kept_.size(),
      [&](std::size_t i) {
        const double below = static_cast<double>(kept_[i].logit) - static_cast<double>(max);
        return temperature == 1.0 ? below : below / temperature;
      },
      [&](std::size_t i, double e) { kept_[i].weight = e; });
}

void sampler::keep_typical() {
  // With w = exp(l - max), Z = sum w: -log p = log Z - (l - max), entropy = log Z - sum w (l - max) / Z. Their distance
  // does not need log Z.
  float max = -infinity;
  for (const candidate& c : kept_) max = std::max(max, c.logit);
  const auto below = [&](const candidate& c) { return static_cast<double>(c.logit) - static_cast<double>(max); };
  const double total = sum(kept_.size(), [&](std::size_t i) { return kept_[i].weight; });
  const double mean = sum(kept_.size(), [&](std::size_t i) { return kept_[i].weight * below(kept_[i]); }) / total;
  const auto rank = [&](const candidate& c) { return ranked{c.weight, std::abs(mean - below(c)), c.id}; };

  ranks_.clear();
  ranks_.reserve(kept_.size());
  for (const candidate& c : kept_) ranks_.push_back(rank(c));
  const std::size_t count = prefix_of_mass(ranks_, options_.typical_p * total, by_key);
  // Filtering by the last one kept leaves the order of kept_ as it is.
  const ranked last = ranks_[count - 1];
  std::erase_if(kept_, [&](const candidate& c) { return by_key(last, rank(c)); });
  weigh(1.0);
}

/// Top-p and min-p. Both keep the first tokens in order of probability, so their intersection is the shorter of the two
/// and min-p, which needs no sorting, can go first; only the mass must be that of all.
void sampler::keep_probable() {
  const double total = sum(kept_.size(), [&](std::size_t i) { return kept_[i].weight; });
  // Tokens below `least` are not needed for top-p: all together they have no more than the mass that may be left out.
  // (The margin is for rounding.) The largest weight is 1, so min-p is a bound on weights, too.
  double least = (1.0 - options_.top_p) * total / static_cast<double>(kept_.size()) * 0.999;
  least = std::max(least, static_cast<double>(options_.min_p));
  std::erase_if(kept_, [&](const candidate& c) { return c.weight < least; });
  if (options_.top_p < 1.0F) {
    const std::size_t count = prefix_of_mass(kept_, options_.top_p * total, by_logit);
    kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(count), kept_.end());
  }
}

/// The counter-th number of SplitMix64 started from a scrambled seed, in [0, 1).
double sampler::uniform() noexcept {
  const std::uint64_t bits = mix(mix(options_.seed + 0x9E3779B97F4A7C15ULL) + (counter_ + 1) * 0x9E3779B97F4A7C15ULL);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

double detail::log_sum(std::span<const float> logits) noexcept {
  bool numbers = true;
  for (const float l : logits) numbers &= l == l;
  if (!numbers) return std::numeric_limits<double>::quiet_NaN();
  const double max = largest(logits);
  if (max == -infinity) return -infinity;
  double part[4] = {0, 0, 0, 0};
  exp_all(
      logits.size(), [&](std::size_t i) { return static_cast<double>(logits[i]) - max; },
      [&](std::size_t i, double e) { part[i % 4] += e; });
  return max + portable_log((part[0] + part[1]) + (part[2] + part[3]));
}

double log_probability(std::span<const float> logits, token_id id) noexcept {
  return static_cast<double>(logits[static_cast<std::size_t>(id)]) - detail::log_sum(logits);
}

std::size_t top_probabilities(std::span<const float> logits, std::span<token_probability> out) noexcept {
  if (out.empty() || logits.empty()) return 0;
  const auto before = [](const token_probability& a, const token_probability& b) {
    return a.logprob != b.logprob ? a.logprob > b.logprob : a.id < b.id;
  };
  // A heap whose front is the least probable of the best so far; logprob holds the logit until the end.
  std::size_t n = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) continue;
    if (n == out.size()) {
      if (!(logits[i] > out.front().logprob)) continue;
      std::pop_heap(out.begin(), out.end(), before);
      --n;
    }
    out[n++] = {static_cast<token_id>(i), logits[i]};
    std::push_heap(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n), before);
  }
  std::sort_heap(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n), before);
  const double all = detail::log_sum(logits);
  for (token_probability& t : out.first(n)) t.logprob = static_cast<float>(static_cast<double>(t.logprob) - all);
  return n;
}

result<std::vector<token_probability>> top_probabilities(std::span<const float> logits, std::size_t count) {
  return detail::guarded([&]() -> result<std::vector<token_probability>> {
    std::vector<token_probability> out(std::min(count, logits.size()));
    out.resize(top_probabilities(logits, std::span<token_probability>(out)));
    return out;
  });
}

}  // namespace flywheel::inline v0
