// moe_ffn: tokens are sorted by expert, so that every expert's weights are read once per chunk and multiplied with all
// rows that chose it. Each (token, choice) is a slot; slots of one expert are neighbours.
//
// Phases: 0 route (one worker), 1 gather and prepare, 2 gate and up, 3 prepare, 4 down, 5 weighted sum per token, in
// the order of its choices: results do not depend on the other tokens or on threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {
namespace {

using kernels::matmul_kernel;

class moe_step final : public step {
 public:
  moe_step(const compile_context& c, const graph::node& n)
      : kernels_(c.kernels),
        a_(n.as<graph::moe_attributes>()),
        x_(c.value(n.inputs[in::x])),
        router_(c.value(n.inputs[in::router])),
        gate_{&c.matrix(n.inputs[in::gate]), c.vector(n.inputs[in::gate_bias])},
        up_{&c.matrix(n.inputs[in::up]), c.vector(n.inputs[in::up_bias])},
        down_{&c.matrix(n.inputs[in::down]), c.vector(n.inputs[in::down_bias])},
        selection_bias_(c.vector(n.inputs[in::selection_bias])),
        expert_scale_(c.vector(n.inputs[in::expert_scale])),
        residual_(c.value(n.inputs[in::residual])),
        out_(c.value(n.outputs[0])),
        hidden_(gate_.weight->n) {}

  std::size_t shared_bytes(std::int64_t max_tokens, std::int64_t max_outputs) const override {
    return layout(x_.outputs ? max_outputs : max_tokens).total;
  }
  int phases(const run_state&) const override { return 6; }

  void run(const worker_state& w, int phase) const override {
    const std::int64_t rows = w.run.rows(x_);
    if (rows == 0) return;
    const areas at(w.run.shared, layout(rows));
    switch (phase) {
      case 0:
        if (w.index == 0 && !w.run.stopping()) route(w.run, at, rows);
        break;
      case 1:
        each_expert(w, at, [&](std::int64_t e, std::int64_t first, std::int64_t count) {
          for (std::int64_t i = first; i < first + count; ++i)
            std::memcpy(at.gathered + i * x_.cols, w.run.at(x_) + at.token_of[i] * x_.cols, row_size(x_.cols));
          prepare(*gate_.weight, e, at.gathered, first, count, at.prepared);
          if (!shared_layout()) prepare(*up_.weight, e, at.gathered, first, count, at.prepared_up);
        });
        break;
      case 2:
        show(w, at, a_.tap_x, at.gathered, x_.cols);
        each_tile(w, at, hidden_,
                  [&](std::int64_t e, std::int64_t first, std::int64_t count, std::int64_t col, std::int64_t cols) {
                    multiply(gate_, e, at.prepared, first, count, col, cols, at.gate, hidden_);
                    multiply(up_, e, shared_layout() ? at.prepared : at.prepared_up, first, count, col, cols, at.up,
                             hidden_);
                    for (std::int64_t i = first; i < first + count; ++i)
                      kernels_.glu(a_.act, at.gate + i * hidden_ + col, at.up + i * hidden_ + col, cols,
                                   at.gate + i * hidden_ + col);
                  });
        break;
      case 3:
        show(w, at, a_.tap_hidden, at.gate, hidden_);
        each_expert(w, at, [&](std::int64_t e, std::int64_t first, std::int64_t count) {
          prepare(*down_.weight, e, at.gate, first, count, at.prepared);
        });
        break;
      case 4:
        each_tile(w, at, x_.cols,
                  [&](std::int64_t e, std::int64_t first, std::int64_t count, std::int64_t col, std::int64_t cols) {
                    multiply(down_, e, at.prepared, first, count, col, cols, at.gathered, x_.cols);
                  });
        break;
      default:
        w.split(rows, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t r = begin; r < end; ++r) combine(w.run, at, r);
        });
    }
  }

 private:
  using in = graph::moe_attributes;
  /// The matrices of all experts, and their biases or null.
  struct product {
    const packed_weight* weight;
    const float* bias;
  };
  struct offsets {
    std::size_t expert_start, token_of, slot_of, weights, order, scores, gathered, gate, up, prepared, prepared_up,
        total;
  };
  /// The same places as pointers.
  struct areas {
    areas(std::byte* base, const offsets& o)
        : expert_start(reinterpret_cast<std::int64_t*>(base + o.expert_start)),
          token_of(reinterpret_cast<std::int64_t*>(base + o.token_of)),
          slot_of(reinterpret_cast<std::int64_t*>(base + o.slot_of)),
          weights(reinterpret_cast<float*>(base + o.weights)),
          order(reinterpret_cast<std::int64_t*>(base + o.order)),
          scores(reinterpret_cast<float*>(base + o.scores)),
          gathered(reinterpret_cast<float*>(base + o.gathered)),
          gate(reinterpret_cast<float*>(base + o.gate)),
          up(reinterpret_cast<float*>(base + o.up)),
          prepared(base + o.prepared),
          prepared_up(base + o.prepared_up) {}
    std::int64_t* expert_start;  ///< [n_expert + 1] first slot of each expert
    std::int64_t* token_of;      ///< [slots]
    std::int64_t* slot_of;       ///< [rows, n_used]
    float* weights;              ///< [rows, n_used]
    std::int64_t* order;         ///< [rows, n_used] experts by choice
    float* scores;               ///< [n_expert] of the row in hand
    float* gathered;             ///< [slots, n]: inputs, later results
    float* gate;                 ///< [slots, hidden]
    float* up;                   ///< [slots, hidden]
    std::byte* prepared;         ///< per expert, tile-aligned
    std::byte* prepared_up;
  };

  [[nodiscard]] static std::size_t row_size(std::int64_t cols) {
    return static_cast<std::size_t>(cols) * sizeof(float);
  }
  [[nodiscard]] bool shared_layout() const { return gate_.weight->kernel->prepared == up_.weight->kernel->prepared; }
  [[nodiscard]] static std::size_t tile_bytes(const packed_weight& m) {
    return align64(m.kernel->prepared_bytes(m.kernel->prepared.tile_rows, m.k));
  }

  [[nodiscard]] offsets layout(std::int64_t rows) const {
    const auto slots = static_cast<std::size_t>(rows * a_.n_used);
    offsets o{};
    std::size_t at = 0;
    const auto place = [&](std::size_t bytes) {
      const std::size_t here = at;
      at += align64(bytes);
      return here;
    };
    o.expert_start = place(static_cast<std::size_t>(a_.n_expert + 1) * sizeof(std::int64_t));
    o.token_of = place(slots * sizeof(std::int64_t));
    o.slot_of = place(slots * sizeof(std::int64_t));
    o.weights = place(slots * sizeof(float));
    o.order = place(slots * sizeof(std::int64_t));
    o.scores = place(row_size(a_.n_expert));
    o.gathered = place(slots * row_size(x_.cols));
    o.gate = place(slots * row_size(hidden_));
    o.up = place(slots * row_size(hidden_));
    o.prepared = place(std::max(area_bytes(*gate_.weight, rows), area_bytes(*down_.weight, rows)));
    o.prepared_up = place(shared_layout() ? 0 : area_bytes(*up_.weight, rows));
    o.total = at;
    return o;
  }
  /// Every expert's rows begin on a tile of their own: at most one tile more per expert.
  [[nodiscard]] std::size_t area_bytes(const packed_weight& m, std::int64_t rows) const {
    return tile_bytes(m) * static_cast<std::size_t>(rows * a_.n_used / m.kernel->prepared.tile_rows + a_.n_expert);
  }
  /// Where the prepared rows of expert e begin. Tile first / t + e is past the tiles of all experts before e, since
  /// each of them ends less than one tile later than its slots do.
  [[nodiscard]] static std::byte* area_of(const packed_weight& m, std::byte* base, std::int64_t e, std::int64_t first) {
    return base + tile_bytes(m) * static_cast<std::size_t>(first / m.kernel->prepared.tile_rows + e);
  }

  void route(const run_state& s, const areas& at, std::int64_t rows) const {
    std::fill_n(at.expert_start, a_.n_expert + 1, 0);
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* logits = s.at(router_) + r * a_.n_expert;
      const float* ranks = selection_bias_ ? biased_scores(logits, at.scores) : logits;  // scores rise with logits
      std::int64_t* chosen = at.order + r * a_.n_used;
      for (std::int64_t u = 0; u < a_.n_used; ++u) {
        std::int64_t best = -1;
        for (std::int64_t e = 0; e < a_.n_expert; ++e)
          if (std::find(chosen, chosen + u, e) == chosen + u && (best < 0 || ranks[e] > ranks[best])) best = e;
        chosen[u] = best;
        ++at.expert_start[best + 1];
      }
      weigh(logits, chosen, at.weights + r * a_.n_used);
    }
    for (std::int64_t e = 0; e < a_.n_expert; ++e) at.expert_start[e + 1] += at.expert_start[e];
    // Filling moves each start to the end of its expert; the shift afterwards moves it back.
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t u = 0; u < a_.n_used; ++u) {
        const std::int64_t slot = at.expert_start[at.order[r * a_.n_used + u]]++;
        at.token_of[slot] = r;
        at.slot_of[r * a_.n_used + u] = slot;
      }
    for (std::int64_t e = a_.n_expert; e > 0; --e) at.expert_start[e] = at.expert_start[e - 1];
    at.expert_start[0] = 0;
  }

  /// The chosen experts' weights.
  void weigh(const float* logits, const std::int64_t* chosen, float* weights) const {
    // Softmax relative to the largest chosen logit: what is common to all weights cancels or is divided by below.
    float top = logits[chosen[0]];
    for (std::int64_t u = 1; u < a_.n_used; ++u) top = std::max(top, logits[chosen[u]]);
    const bool softmax = a_.scores == graph::router_scores::softmax;
    for (std::int64_t u = 0; u < a_.n_used; ++u)
      weights[u] = softmax ? std::exp(logits[chosen[u]] - top) : sigmoid(logits[chosen[u]]);
    double sum = 0;
    if (a_.renormalize)
      for (std::int64_t u = 0; u < a_.n_used; ++u) sum += static_cast<double>(weights[u]);
    else if (softmax)
      for (std::int64_t e = 0; e < a_.n_expert; ++e) sum += std::exp(static_cast<double>(logits[e] - top));
    else
      sum = 1;
    for (std::int64_t u = 0; u < a_.n_used; ++u) {
      const double scale =
          static_cast<double>(a_.scale) * (expert_scale_ ? static_cast<double>(expert_scale_[chosen[u]]) : 1.0);
      weights[u] = static_cast<float>(static_cast<double>(weights[u]) / sum * scale);
    }
  }
  [[nodiscard]] static float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
  /// Scores of all experts plus the selection bias.
  const float* biased_scores(const float* logits, float* scores) const {
    const float top = *std::max_element(logits, logits + a_.n_expert);
    double sum = 0;
    for (std::int64_t e = 0; e < a_.n_expert; ++e) sum += std::exp(static_cast<double>(logits[e] - top));
    for (std::int64_t e = 0; e < a_.n_expert; ++e) {
      const float score = a_.scores == graph::router_scores::softmax
                              ? static_cast<float>(std::exp(static_cast<double>(logits[e] - top)) / sum)
                              : sigmoid(logits[e]);
      scores[e] = score + selection_bias_[e];
    }
    return scores;
  }

  /// Calls f(expert, first slot, count) for every expert that has tokens.
  template <class F>
  void each_expert(const worker_state& w, const areas& at, F&& f) const {
    w.take(a_.n_expert, [&](std::int64_t e) {
      const std::int64_t first = at.expert_start[e], count = at.expert_start[e + 1] - first;
      if (count > 0) f(e, first, count);
    });
  }
  /// Shows the run's observer the rows of every expert, if the graph asks for it.
  void show(const worker_state& w, const areas& at, std::optional<std::uint32_t> point, const float* rows,
            std::int64_t cols) const {
    for (std::int64_t e = 0; point && e < a_.n_expert; ++e)
      w.show({*point, e, rows + at.expert_start[e] * cols, at.expert_start[e + 1] - at.expert_start[e], cols});
  }
  template <class F>
  void each_tile(const worker_state& w, const areas& at, std::int64_t n, F&& f) const {
    const std::int64_t blocks = (n + block_columns - 1) / block_columns;
    w.take(a_.n_expert * blocks, [&](std::int64_t task) {
      const std::int64_t e = task / blocks, col = task % blocks * block_columns;
      const std::int64_t first = at.expert_start[e], count = at.expert_start[e + 1] - first;
      if (count > 0) f(e, first, count, col, std::min(block_columns, n - col));
    });
  }

  void prepare(const packed_weight& m, std::int64_t e, const float* rows, std::int64_t first, std::int64_t count,
               std::byte* base) const {
    m.kernel->prepare(rows + first * m.k, m.k, 0, count, m.k, area_of(m, base, e, first));
  }
  void multiply(const product& p, std::int64_t e, std::byte* base, std::int64_t first, std::int64_t count,
                std::int64_t col, std::int64_t cols, float* y, std::int64_t stride) const {
    const packed_weight& m = *p.weight;
    kernels::matmul_args args;
    args.prepared = area_of(m, base, e, first);
    args.row_end = count;
    args.panels = m.expert(e) + static_cast<std::size_t>(col / m.kernel->panel_cols) * m.panel_bytes;
    args.k = m.k;
    args.n = cols;
    args.y = y + first * stride + col;
    args.y_stride = stride;
    args.epilogue.bias = p.bias ? p.bias + e * m.n + col : nullptr;
    m.kernel->run(args);
  }

  void combine(const run_state& s, const areas& at, std::int64_t r) const {
    float* y = s.at(out_) + r * x_.cols;
    const std::int64_t* slots = at.slot_of + r * a_.n_used;
    const float* weights = at.weights + r * a_.n_used;
    if (residual_.given()) {
      const float* residual = s.at(residual_) + r * x_.cols;
      if (residual != y) std::memcpy(y, residual, row_size(x_.cols));
    } else {
      std::memset(y, 0, row_size(x_.cols));
    }
    for (std::int64_t u = 0; u < a_.n_used; ++u)
      kernels_.scaled_add(at.gathered + slots[u] * x_.cols, weights[u], x_.cols, y);
  }

  const kernels::kernel_set& kernels_;
  graph::moe_attributes a_;
  operand x_, router_;
  product gate_, up_, down_;
  const float *selection_bias_, *expert_scale_;
  operand residual_, out_;
  std::int64_t hidden_;
};

}  // namespace

std::unique_ptr<step> make_moe(const compile_context& c, const graph::node& n) {
  return std::make_unique<moe_step>(c, n);
}

}  // namespace flywheel::inline v0::device
