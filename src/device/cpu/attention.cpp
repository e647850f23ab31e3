// attention: norm and rotate the heads of queries and keys, store keys and values, attend. While every sequence has one
// token (decode), all of it belongs to one kv head and needs one phase; in a prefill, tokens see keys that other
// workers store, hence two. A node without keys finds them stored: one phase.
#include <algorithm>
#include <array>
#include <cmath>

#include "src/device/cpu/head_blocks.hpp"

namespace flywheel::inline v0::device {
namespace {

constexpr std::int64_t block_tokens = 16;  ///< Tokens per task: a unit of balance.

class attention_step final : public step {
 public:
  attention_step(const compile_context& c, const graph::node& n)
      : kernels_(c.kernels),
        a_(n.as<graph::attention_attributes>()),
        q_(c.value(n.inputs[in::q])),
        k_(c.value(n.inputs[in::k])),
        v_(c.value(n.inputs[in::v])),
        out_(c.value(n.outputs[0])),
        sinks_(c.vector(n.inputs[in::sinks])) {
    for (std::size_t i = 0; i < 3; ++i) norms_[i] = c.vector(n.inputs[in::q_norm + i]);
    if (a_.rope) table_ = c.rope(*a_.rope, n.inputs[in::rope_factors], n.inputs[in::long_rope_factors]);
  }

  std::size_t own_bytes(std::int64_t max_tokens, std::int64_t /*max_outputs*/) const override {
    kernels::attention_args args = base_args();
    args.first_position = max_tokens;
    std::size_t floats = 0;  // sessions of one program may have caches of different types
    for (const dtype type : {dtype::f16, dtype::f32, dtype::q8_0, dtype::q4_0}) {
      args.kv_type = type;
      floats = std::max(floats, kernels_.attention_scratch(args));
    }
    return align64(floats * sizeof(float));
  }

  int phases(const run_state& s) const override { return alone(s) ? 1 : 2; }

  void run(const worker_state& w, int phase) const override {
    const bool one = alone(w.run);
    const std::int64_t tasks = blocks().count(w.run);
    w.take(tasks, [&](std::int64_t task) {
      // The last tokens of a head see most positions: they go first, so that no worker starts a long task at the end.
      const head_block p = blocks().at(w.run, phase == 1 ? tasks - 1 - task : task);
      if (one || phase == 0) store(w.run, p);
      if (one || phase == 1) attend(w, p);
    });
  }

 private:
  using in = graph::attention_attributes;
  /// Whether what a block sees was stored before or by itself.
  [[nodiscard]] bool alone(const run_state& s) const {
    return !k_.given() || s.n_tokens == static_cast<std::int64_t>(s.bound->sequences.size());
  }
  [[nodiscard]] head_blocks blocks() const { return {a_.n_kv_heads, block_tokens}; }

  /// Norms and rotates `count` heads of one token in place: of q, k or v (`which`).
  void turn(const run_state& s, std::size_t which, std::int64_t token, float* heads, std::int64_t count) const {
    const std::int64_t d = a_.head_dim;
    if (a_.norm_eps[which])
      for (std::int64_t h = 0; h < count; ++h)
        kernels_.rms_norm(heads + h * d, norms_[which], *a_.norm_eps[which], d, heads + h * d);
    if (!table_ || which == in::v) return;
    const float* cos = table_->row(s, token);
    kernels_.rope(heads, count, d, a_.rope->n_rot, cos, cos + a_.rope->n_rot / 2, a_.rope->pairs);
  }

  void store(const run_state& s, const head_block& p) const {
    const std::int64_t group = a_.n_heads / a_.n_kv_heads, d = a_.head_dim;
    for (std::int64_t t = p.first_row + p.begin; t < p.first_row + p.end; ++t) {
      float* q = s.at(q_) + t * q_.cols + p.head * group * d;
      turn(s, in::q, t, q, group);
      if (a_.temperature != 0) {
        const std::int64_t position = p.slice->first_position + t - p.first_row;
        const auto spans = static_cast<double>(position / a_.temperature_length);
        kernels_.scale(q, static_cast<float>(1 + static_cast<double>(a_.temperature) * std::log(1 + spans)), group * d,
                       q);
      }
      if (!k_.given()) continue;
      turn(s, in::k, t, s.at(k_) + t * k_.cols + p.head * d, 1);
      turn(s, in::v, t, s.at(v_) + t * v_.cols + p.head * d, 1);
    }
    if (!k_.given()) return;
    kernels::store_kv_args args;
    args.k = s.at(k_) + (p.first_row + p.begin) * k_.cols;
    args.k_stride = k_.cols;
    args.v = s.at(v_) + (p.first_row + p.begin) * v_.cols;
    args.v_stride = v_.cols;
    args.kv_pages = p.slice->pages[a_.layer];
    args.kv_type = s.bound->kv_type;
    args.n_tokens = p.end - p.begin;
    args.n_kv_heads = a_.n_kv_heads;
    args.head_dim = d;
    args.first_position = p.slice->first_position + p.begin;
    kernels_.store_kv(args, p.head);
  }

  void attend(const worker_state& w, const head_block& p) const {
    kernels::attention_args args = base_args();
    args.q = w.run.at(q_) + p.first_row * q_.cols;
    args.out = w.run.at(out_) + p.first_row * out_.cols;
    args.kv_pages = p.slice->pages[a_.layer];
    args.kv_type = w.run.bound->kv_type;
    args.first_position = p.slice->first_position;
    kernels_.attention(args, p.head, p.begin, p.end, reinterpret_cast<float*>(w.own()));
  }

  [[nodiscard]] kernels::attention_args base_args() const {
    kernels::attention_args args;
    args.q_stride = q_.cols;
    args.out_stride = out_.cols;
    args.n_heads = a_.n_heads;
    args.n_kv_heads = a_.n_kv_heads;
    args.head_dim = a_.head_dim;
    args.window = a_.window;
    args.scale = a_.scale;
    args.softcap = a_.softcap;
    args.sinks = sinks_;
    return args;
  }

  const kernels::kernel_set& kernels_;
  graph::attention_attributes a_;
  operand q_, k_, v_, out_;
  const float* sinks_;
  std::array<const float*, 3> norms_{};  ///< Of q, k and v; null: weightless.
  std::optional<rope_table> table_;
};

}  // namespace

std::unique_ptr<step> make_attention(const compile_context& c, const graph::node& n) {
  return std::make_unique<attention_step>(c, n);
}

}  // namespace flywheel::inline v0::device
