// Runs a graph on a device for tests: allocates pages, arena and scratch, and returns the first result.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/device/device.hpp"
#include "flywheel/graph/plan.hpp"
#include "kernels/attention/attention.hpp"
#include "support/catch.hpp"

namespace flywheel::test {

/// 0, 1, ..: results of every token.
inline std::vector<std::int32_t> all_rows(std::size_t n) {
  std::vector<std::int32_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

/// Largest difference, relative to the root mean square of the reference.
inline double distance(const std::vector<float>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  double square = 0, worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    square += want[i] * want[i];
    worst = std::max(worst, std::isfinite(got[i]) ? std::abs(static_cast<double>(got[i]) - want[i]) : 1e30);
  }
  return worst / std::sqrt(square / static_cast<double>(got.size()));
}

/// KV pages and recurrent states of one sequence, all allocated at once.
class test_cache {
 public:
  test_cache(std::int64_t layers, std::int64_t kv_heads, std::int64_t head_dim, dtype type, std::int64_t positions)
      : test_cache(std::vector<std::size_t>(static_cast<std::size_t>(layers),
                                            kernels::kv_page_bytes(type, kv_heads, head_dim)),
                   type, positions) {}
  /// As large as the graph's nodes ask for.
  test_cache(const graph::graph& g, dtype type, std::int64_t positions)
      : test_cache(pages_of(g, type), type, positions) {
    for (const graph::node& n : g.nodes) {
      if (n.kind != graph::op::delta_net) continue;
      const auto& a = n.as<graph::delta_net_attributes>();
      const auto layer = static_cast<std::size_t>(a.layer);
      for (side& s : states_) {
        s.storage.push_back(buffer::zeros(static_cast<std::size_t>(a.state_floats()) * sizeof(float)).value());
        s.before.resize(std::max(s.before.size(), layer + 1));
        s.after.resize(s.before.size());
        s.before[layer] = s.after[layer] = s.storage.back().mutable_data();
      }
    }
  }
  [[nodiscard]] std::byte* const* const* pages() const { return pages_.data(); }
  /// The next tokens, of which the first has this position. advance() after running them.
  [[nodiscard]] device::sequence_slice slice(std::int64_t tokens, std::int64_t position) const {
    device::sequence_slice s;
    s.n_tokens = tokens;
    s.first_position = position;
    s.pages = pages();
    s.state = states_[now_].before.data();
    s.next_state = states_[1 - now_].after.data();
    return s;
  }
  void advance() { now_ = 1 - now_; }
  dtype type;

 private:
  /// Each state exists twice: as it was before a run, and after it.
  struct side {
    std::vector<buffer> storage;
    std::vector<const std::byte*> before;
    std::vector<std::byte*> after;
  };

  /// bytes: of a page, by layer.
  test_cache(const std::vector<std::size_t>& bytes, dtype type, std::int64_t positions) : type(type) {
    const auto pages = static_cast<std::size_t>((positions + kv_page_tokens - 1) / kv_page_tokens);
    storage_ = buffer::zeros(std::accumulate(bytes.begin(), bytes.end(), std::size_t{0}) * pages).value();
    std::byte* at = storage_.mutable_data();
    for (const std::size_t page : bytes) {
      auto& row = rows_.emplace_back();
      for (std::size_t p = 0; p < pages; ++p, at += page) row.push_back(at);
    }
    for (auto& row : rows_) pages_.push_back(row.data());
  }
  static std::vector<std::size_t> pages_of(const graph::graph& g, dtype type) {
    std::vector<std::size_t> bytes;
    for (const graph::node& n : g.nodes) {
      if (n.kind != graph::op::attention) continue;
      const auto& a = n.as<graph::attention_attributes>();
      bytes.resize(std::max(bytes.size(), static_cast<std::size_t>(a.layer + 1)));
      bytes[static_cast<std::size_t>(a.layer)] = kernels::kv_page_bytes(type, a.n_kv_heads, a.head_dim);
    }
    return bytes;
  }

  buffer storage_;
  std::vector<std::vector<std::byte*>> rows_;
  std::vector<std::byte* const*> pages_;
  side states_[2];
  std::size_t now_ = 0;
};

class graph_runner {
 public:
  graph_runner(graph::graph g, const io::archive& file, std::shared_ptr<const device::device> dev,
               std::shared_ptr<executor> pool)
      : graph_(std::make_unique<graph::graph>(std::move(g))), device_(std::move(dev)), pool_(std::move(pool)) {
    const device::device* devices[] = {device_.get()};
    device::subgraph part = device::partition(*graph_, devices).value().parts.at(0).part;
    auto weights = device_->load({&part, 1}, file, *pool_, nullptr, {}).value();
    weight_bytes = weights->bytes();
    measured_bytes = device_->measure({&part, 1}, file).value()->bytes();
    executable_ = device_->compile(part, weights).value();
  }

  /// One chunk of one or more sequences.
  result<std::vector<float>> run(std::span<const std::int32_t> ids, std::span<const device::sequence_slice> slices,
                                 dtype kv_type, std::span<const std::int32_t> outputs, std::stop_token stop = {},
                                 std::span<const std::int32_t> token_types = {}) {
    const auto n = static_cast<std::int64_t>(ids.size());
    const auto plan =
        graph::plan_memory(*graph_, n, std::max<std::int64_t>(1, static_cast<std::int64_t>(outputs.size()))).value();
    buffer arena = buffer::allocate(plan.arena_bytes + 64).value();
    buffer scratch = buffer::allocate(executable_->scratch_bytes(n, n, pool_->concurrency()) + 64).value();
    std::vector<float> out(outputs.size() * static_cast<std::size_t>(graph_->at(graph_->outputs.at(0)).cols));
    float* results[] = {out.data()};
    device::bindings b;
    b.ids = ids;
    b.token_types = token_types;
    b.sequences = slices;
    b.output_rows = outputs;
    b.kv_type = kv_type;
    b.arena = arena.mutable_data();
    b.offsets = plan.offsets;
    b.results = results;
    b.scratch = scratch.mutable_data();
    b.executor = pool_.get();
    b.stop = stop;
    if (auto ok = executable_->run(b); !ok) return std::move(ok).error();
    return out;
  }

  /// All tokens of one sequence from position 0 on, in chunks; results of every token.
  std::vector<float> run_all(std::span<const std::int32_t> ids, test_cache& cache, std::size_t chunk) {
    std::vector<float> all;
    for (std::size_t at = 0; at < ids.size(); at += chunk) {
      const std::size_t n = std::min(chunk, ids.size() - at);
      std::vector<std::int32_t> rows(n);
      for (std::size_t i = 0; i < n; ++i) rows[i] = static_cast<std::int32_t>(i);
      device::sequence_slice slice = cache.slice(static_cast<std::int64_t>(n), static_cast<std::int64_t>(at));
      slice.n_ctx = n_ctx;
      const auto part = run(ids.subspan(at, n), {&slice, 1}, cache.type, rows).value();
      cache.advance();
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  std::size_t weight_bytes = 0, measured_bytes = 0;
  std::int64_t n_ctx = 0;  ///< Positions that run_all's sequence may grow to.

 private:
  std::unique_ptr<graph::graph> graph_;
  std::shared_ptr<const device::device> device_;
  std::shared_ptr<executor> pool_;
  std::unique_ptr<const device::executable> executable_;
};

}  // namespace flywheel::test
