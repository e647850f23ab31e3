// A tiny deterministic engine for tests of sessions. What it computes for a token depends on every byte that it finds
// in the cache, so that a wrong, stale, missing or foreign page changes the results.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "kernels/attention/page.hpp"
#include "src/model/engine.hpp"
#include "src/model/kv_cache.hpp"
#include "src/model/model_state.hpp"
#include "support/tiny_model.hpp"

namespace flywheel::test {

/// Layers that all attend alike.
inline detail::kv_layout alike(std::size_t layers, std::int32_t n_kv_heads, std::int32_t head_dim,
                               std::int64_t window = 0) {
  return {std::vector(layers, detail::kv_slot::attending(n_kv_heads, head_dim, window))};
}

/// Layers of every kind: with and without a window, recurrent, without memory.
inline detail::kv_layout mixed_layers() {
  using slot = detail::kv_slot;
  return {{slot::attending(1, 8), slot::attending(1, 8, 70), slot::recurring(3), slot{}}};
}
inline detail::kv_layout windowed_layers() {
  return {{detail::kv_slot::attending(1, 8, 70), detail::kv_slot::attending(1, 8)}};
}

struct fake_shape {
  detail::kv_layout kv = alike(2, 2, 8);
  std::int32_t n_vocab = 320;
  std::int32_t n_embd = 12;
  std::int32_t n_ctx_train = 256;
  std::uint64_t digest = 77;
  bool vocabulary = true;
};

class fake_engine final : public detail::engine {
 public:
  explicit fake_engine(const fake_shape& shape) : shape_(shape) {}

  /// Called before each layer of each forward pass; its error is the pass's.
  std::function<result<void>(std::int32_t layer, const detail::chunk& c)> before_layer;
  mutable std::atomic<std::int64_t> tokens_computed{0};

  const detail::kv_layout& kv() const override { return shape_.kv; }
  std::int32_t n_vocab() const override { return shape_.n_vocab; }
  std::int32_t n_embd() const override { return shape_.n_embd; }
  std::int32_t n_ctx_train() const override { return shape_.n_ctx_train; }
  std::uint64_t digest() const override { return shape_.digest; }
  std::size_t workspace_bytes(std::int32_t n_batch) const override { return static_cast<std::size_t>(n_batch) * 16; }
  result<std::unique_ptr<detail::workspace>> new_workspace(std::int32_t n_batch) const override {
    return detail::guarded([&]() -> result<std::unique_ptr<detail::workspace>> {
      auto w = std::make_unique<space>();
      w->digests.resize(static_cast<std::size_t>(n_batch));
      w->size = workspace_bytes(n_batch);
      return std::unique_ptr<detail::workspace>(std::move(w));
    });
  }

  result<void> forward(const detail::chunk& c, detail::workspace& w, std::span<float> out) const override {
    auto& digests = static_cast<space&>(w).digests;
    const std::size_t width = static_cast<std::size_t>(c.hidden ? shape_.n_embd : shape_.n_vocab);
    const auto broken = [](const char* what) { return error{errc::internal, what, "fake engine"}; };
    if (c.ids.empty() || c.ids.size() > digests.size()) return broken("chunk size");
    if (out.size() != c.output_rows.size() * width) return broken("size of out");
    std::int64_t tokens = 0;
    for (const detail::chunk_part& p : c.parts) {
      tokens += p.n_tokens;
      if (p.n_tokens < 1 || p.cache->kv_type() != c.parts[0].cache->kv_type()) return broken("parts");
    }
    if (tokens != static_cast<std::int64_t>(c.ids.size())) return broken("parts");
    // Clobbered on purpose: only success may be relied on.
    for (float& x : out) x = -1e9F;
    for (std::size_t i = 0; i < c.ids.size(); ++i) {
      if (c.ids[i] < 0 || c.ids[i] >= shape_.n_vocab) return broken("token id");
      digests[i] = mix(static_cast<std::uint64_t>(c.ids[i]) + 1);
    }
    for (std::size_t layer = 0; layer < shape_.kv.slots.size(); ++layer) {
      if (before_layer) FLYWHEEL_CHECK(before_layer(static_cast<std::int32_t>(layer), c));
      if (c.stop.stop_requested()) return error{errc::cancelled, "cancelled", {}};
      std::uint64_t* row = digests.data();
      for (const detail::chunk_part& p : c.parts) {
        const std::span<std::uint64_t> own(row, static_cast<std::size_t>(p.n_tokens));
        row += p.n_tokens;
        switch (shape_.kv.slots[layer].what) {
          case detail::kv_slot::kind::none:
            for (std::uint64_t& d : own) d = mix(d + layer);
            break;
          case detail::kv_slot::kind::attention:
            attend(*p.cache, layer, own);
            break;
          case detail::kv_slot::kind::recurrent:
            if (!recur(*p.cache, layer, own)) return broken("a sequence does not begin with a state of zeros");
        }
      }
    }
    std::int32_t before = -1;
    float* row = out.data();
    for (const std::int32_t i : c.output_rows) {
      if (i <= before || static_cast<std::size_t>(i) >= c.ids.size()) return broken("output rows");
      before = i;
      for (std::size_t v = 0; v < width; ++v)
        *row++ = static_cast<float>(mix(digests[static_cast<std::size_t>(i)] + v) >> 40) * 0x1p-21F - 4;
    }
    tokens_computed += static_cast<std::int64_t>(c.ids.size());
    return {};
  }

 private:
  struct space final : detail::workspace {
    std::size_t bytes() const noexcept override { return size; }
    std::vector<std::uint64_t> digests;
    std::size_t size = 0;
  };

  static std::uint64_t mix(std::uint64_t z) {
    z += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  void attend(const detail::kv_cache& cache, std::size_t layer, std::span<std::uint64_t> digests) const {
    const std::int64_t window = shape_.kv.slots[layer].window;
    std::int64_t p = cache.size();
    for (const std::uint64_t d : digests) write(cache, layer, p++, d);
    std::uint64_t seen = layer;
    p = cache.size();
    if (window == 0)
      for (std::int64_t before = 0; before < p; ++before) seen = read(cache, layer, before, seen);
    for (std::uint64_t& d : digests) {
      if (window > 0) {
        seen = layer;
        for (std::int64_t q = std::max<std::int64_t>(0, p - window + 1); q < p; ++q) seen = read(cache, layer, q, seen);
      }
      seen = read(cache, layer, p++, seen);
      d = mix(d ^ seen);
    }
  }

  bool recur(const detail::kv_cache& cache, std::size_t layer, std::span<std::uint64_t> digests) const {
    const auto floats = static_cast<std::size_t>(shape_.kv.slots[layer].state_floats);
    std::vector<float> state(floats);
    std::memcpy(state.data(), cache.states()[layer], floats * sizeof(float));
    if (cache.size() == 0)
      for (const float x : state)
        if (x != 0) return false;
    for (std::uint64_t& d : digests) {
      for (float& x : state) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &x, sizeof bits);
        d = mix(d ^ bits);
        x = static_cast<float>(d >> 40);
      }
    }
    std::memcpy(cache.next_states()[layer], state.data(), floats * sizeof(float));
    return true;
  }

  /// Calls f with each byte of a position, where kernels put them.
  template <class F>
  void each(const detail::kv_cache& cache, std::size_t layer, std::int64_t position, F&& f) const {
    const detail::kv_slot& slot = shape_.kv.slots[layer];
    const std::size_t row = static_cast<std::size_t>(position % kv_page_tokens);
    std::size_t at = 0;
    const auto keys = kernels::kv_key_lines(cache.kv_type(), slot.head_dim);
    const auto values = kernels::kv_value_lines(cache.kv_type(), slot.head_dim);
    for (const auto& half : {keys, values})
      for (std::int32_t head = 0; head < slot.n_kv_heads; ++head)
        for (const auto& lines : {half.numbers, half.scales})
          for (std::size_t i = 0; i < lines.count; ++i, at += lines.position_bytes * kv_page_tokens)
            for (std::size_t j = 0; j < lines.position_bytes; ++j) f(at + row * lines.position_bytes + j);
  }

  void write(const detail::kv_cache& cache, std::size_t layer, std::int64_t position, std::uint64_t value) const {
    std::byte* const page = cache.pages(layer)[position / kv_page_tokens];
    each(cache, layer, position, [&](std::size_t at) {
      value = mix(value);
      page[at] = static_cast<std::byte>(value);
    });
  }
  std::uint64_t read(const detail::kv_cache& cache, std::size_t layer, std::int64_t position,
                     std::uint64_t seen) const {
    const std::byte* const page = cache.pages(layer)[position / kv_page_tokens];
    each(cache, layer, position, [&](std::size_t at) {
      seen = (seen ^ static_cast<std::uint64_t>(page[at])) * 0x9FB21C651E98DF25ULL;
      seen ^= seen >> 29;
    });
    return seen;
  }

  fake_shape shape_;
};

/// A model handle over a fake engine, which stays reachable for hooks.
struct fake_model {
  model handle;
  fake_engine* engine = nullptr;

  explicit fake_model(const fake_shape& shape = {}, std::shared_ptr<std::pmr::memory_resource> memory = nullptr,
                      unsigned threads = 1) {
    context_options options;
    options.threads = threads;
    options.memory = std::move(memory);
    auto s = std::make_shared<model::state>();
    s->ctx = std::move(context::create(std::move(options))).value();
    if (shape.vocabulary) {
      tiny_model tiny;
      tiny.vocab = std::min(shape.n_vocab, 320);
      s->tokenizer = std::move(text::tokenizer::from_metadata(tiny_metadata(tiny))).value();
    }
    auto made = std::make_unique<fake_engine>(shape);
    engine = made.get();
    s->engine = std::move(made);
    handle = model(std::move(s));
  }
  [[nodiscard]] session open(const session_options& options = {}) const {
    return std::move(handle.new_session(options)).value();
  }
};

/// Some ids of a vocabulary of 320, without control tokens: the same for the same seed.
inline std::vector<token_id> some_ids(std::size_t n, std::uint64_t seed = 1) {
  tiny_random random(seed);
  std::vector<token_id> ids(n);
  for (token_id& id : ids) id = 3 + static_cast<token_id>(random.uniform() * 317);
  return ids;
}

/// The logits that a fresh session has after `ids`.
inline std::vector<float> logits_after(const fake_model& m, std::span<const token_id> ids,
                                       session_options options = {}) {
  options.n_ctx = static_cast<std::int32_t>(ids.size()) + 8;
  options.when_full = when_full::refuse;
  options.keep = 0;
  session s = m.open(options);
  s.prefill(ids).value();
  return {s.logits().begin(), s.logits().end()};
}

inline std::vector<float> copy(std::span<const float> values) { return {values.begin(), values.end()}; }
inline std::vector<token_id> copy(std::span<const token_id> values) { return {values.begin(), values.end()}; }
inline std::vector<std::uint64_t> copy(std::span<const std::uint64_t> values) { return {values.begin(), values.end()}; }

/// Everything a caller can see of a session, to find that a failed call changed nothing.
struct snapshot {
  std::vector<token_id> tokens;
  std::vector<float> logits;
  explicit snapshot(const session& s) : tokens(copy(s.tokens())), logits(copy(s.logits())) {}
  friend bool operator==(const snapshot&, const snapshot&) = default;
};

}  // namespace flywheel::test
