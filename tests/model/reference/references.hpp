// Which reference pass belongs to which architecture.
#pragma once

#include "model/reference/bert.hpp"
#include "model/reference/gemma.hpp"
#include "model/reference/granite.hpp"
#include "model/reference/mistral3.hpp"
#include "model/reference/qwen3.hpp"
#include "model/reference/qwen35.hpp"
#include "model/reference/smollm3.hpp"

namespace flywheel::test::reference {

/// Logits of all positions, or an encoder's hidden states.
inline prediction predict(const model_file& m, std::span<const std::int32_t> ids) {
  const std::string architecture = m.architecture();
  if (architecture == "llama") return llama(m, ids);
  if (architecture == "smollm3") return llama(m, ids, smollm3_settings());
  if (architecture == "granite") return llama(m, ids, granite_settings(m));
  if (architecture == "mistral3") return llama(m, ids, mistral3_settings(m));
  if (architecture == "qwen3" || architecture == "qwen3moe" || architecture == "qwen2")
    return llama(m, ids, qwen3_settings());
  if (architecture == "gemma3") return gemma(m, ids, gemma3_settings(m));
  if (architecture == "gemma4") return gemma(m, ids, gemma4_settings(m));
  if (architecture == "qwen35" || architecture == "qwen35moe") return qwen35(m, ids);
  if (architecture == "bert" || architecture == "nomic-bert") {
    prediction p;
    p.hidden = bert(m, ids);
    return p;
  }
  throw std::invalid_argument("no reference pass for " + architecture);
}

/// The vector that the file's pooling_type asks for, not normalised.
inline vec embed(const model_file& m, std::span<const std::int32_t> ids) {
  return pooled(predict(m, ids).hidden, static_cast<pooling>(m.count("pooling_type")));
}

/// `count` ids below `vocab`, the same everywhere.
inline std::vector<std::int32_t> random_ids(std::size_t count, std::int32_t vocab, std::uint64_t seed = 1) {
  tiny_random random(seed);
  std::vector<std::int32_t> ids(count);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.uniform() * static_cast<float>(vocab));
  return ids;
}

inline double deviation(std::span<const double> x) {
  const double n = static_cast<double>(x.size());
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  double square = 0;
  for (double v : x) square += (v - mean) * (v - mean);
  return std::sqrt(square / n);
}

/// The conformance set's metric: the largest difference in units of the standard deviation of `want`.
inline double difference(std::span<const double> got, std::span<const double> want) {
  if (got.size() != want.size()) throw std::runtime_error("results of different sizes");
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double delta = std::abs(got[i] - want[i]);
    worst = delta <= worst ? worst : delta;  // a NaN stays
  }
  return worst / deviation(want);
}
inline vec flat(const rows& x) {
  vec all;
  for (const vec& row : x) all.insert(all.end(), row.begin(), row.end());
  return all;
}

}  // namespace flywheel::test::reference
