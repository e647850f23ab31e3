#include "src/device/cpu/program.hpp"

#include <algorithm>

#include "flywheel/detail/barrier.hpp"
#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device {

operand compile_context::value(graph::value v) const {
  operand o;
  if (!v.valid()) return o;
  o.value = v.index;
  o.cols = g.at(v).cols;
  o.outputs = g.at(v).rows == graph::row_kind::outputs;
  for (std::size_t i = 0; i < g.outputs.size(); ++i)
    if (g.outputs[i] == v) o.result = static_cast<std::uint32_t>(i);
  return o;
}

const float* compile_context::vector(graph::value v) const {
  return v.valid() ? weights.find(*g.weight_of(v), weight_use::vector)->floats() : nullptr;
}

const float* compile_context::transposed(graph::value v) const {
  return weights.find(*g.weight_of(v), weight_use::transposed)->floats();
}

const packed_weight& compile_context::matrix(graph::value v) const {
  return *weights.find(*g.weight_of(v), weight_use::matmul);
}

rope_table compile_context::rope(const graph::rope_attributes& attributes, graph::value factors,
                                 graph::value long_factors) const {
  const float *numbers = vector(factors), *long_numbers = vector(long_factors);
  for (const rope_table& t : ropes)
    if (t.attributes == attributes && t.factors == numbers && t.long_factors == long_numbers) return t;
  const std::int64_t before = ropes.empty() ? 0 : ropes.back().before + ropes.back().attributes.n_rot;
  return ropes.emplace_back(rope_table{attributes, numbers, long_numbers, before});
}

result<std::unique_ptr<const executable>> program::compile(const subgraph& part, const kernels::kernel_set& kernels,
                                                           std::shared_ptr<const device_weights> weights) {
  const auto* packed = dynamic_cast<const cpu_weights*>(weights.get());
  if (!packed) return error{errc::invalid_argument, "the weights were loaded by another device", "cpu"};
  auto out = std::make_unique<program>();
  std::vector<rope_table> ropes;
  const compile_context context{*part.whole, kernels, *packed, ropes};
  for (std::uint32_t index : part.nodes) {
    const graph::node& n = part.whole->nodes[index];
    switch (n.kind) {
      case graph::op::linear:
        out->steps_.push_back(make_linear(context, n));
        break;
      case graph::op::attention:
        out->steps_.push_back(n.as<graph::attention_attributes>().causal ? make_attention(context, n)
                                                                         : make_bidirectional_attention(context, n));
        break;
      case graph::op::delta_net:
        out->steps_.push_back(make_delta_net(context, n));
        break;
      case graph::op::moe_ffn:
        out->steps_.push_back(make_moe(context, n));
        break;
      case graph::op::tap:
        out->steps_.push_back(make_tap(context, n));
        break;
      default:
        out->steps_.push_back(make_rowwise(context, n));
        break;
    }
  }
  if (!ropes.empty()) {
    out->table_floats_ = ropes.back().before + ropes.back().attributes.n_rot;
    out->steps_.insert(out->steps_.begin(), make_rope_tables(ropes));
  }
  out->weights_ = std::move(weights);
  return std::unique_ptr<const executable>(std::move(out));
}

std::size_t program::tables_bytes(std::int64_t tokens) const {
  return align64(static_cast<std::size_t>(table_floats_ * tokens) * sizeof(float));
}

std::size_t program::shared_bytes(std::int64_t tokens, std::int64_t outputs) const {
  std::size_t most = 0;
  for (const auto& s : steps_) most = std::max(most, s->shared_bytes(tokens, outputs));
  return align64(most);
}

std::size_t program::own_bytes(std::int64_t tokens, std::int64_t outputs) const {
  std::size_t most = 0;
  for (const auto& s : steps_) most = std::max(most, s->own_bytes(tokens, outputs));
  return align64(most);
}

std::size_t program::scratch_bytes(std::int64_t max_tokens, std::int64_t max_outputs, unsigned workers) const {
  return tables_bytes(max_tokens) + shared_bytes(max_tokens, max_outputs) +
         own_bytes(max_tokens, max_outputs) * workers;
}

result<void> program::run(const bindings& b) const {
  run_state s;
  s.bound = &b;
  s.n_tokens = static_cast<std::int64_t>(b.ids.size());
  s.n_outputs = static_cast<std::int64_t>(b.output_rows.size());
  s.workers = b.executor->concurrency();
  s.tables = b.scratch;
  s.shared = s.tables + tables_bytes(s.n_tokens);
  s.own = s.shared + shared_bytes(s.n_tokens, s.n_outputs);
  s.own_bytes = own_bytes(s.n_tokens, s.n_outputs);
  s.next[0] = s.next[1] = 0;

  if (s.workers == 1 || b.executor->gang()) {
    // One dispatch for the whole program. Between the barriers of two phases nobody uses the counter of the phase after
    // them, so worker 0 resets it there. In the same way it decides before a barrier whether the run ends behind it,
    // and everybody finds the same answer there: after a stop, other barriers would cost a time slice each on a busy
    // machine.
    detail::barrier barrier(s.workers);
    const auto body = [&](unsigned index) {
      std::size_t counter = 0;
      for (const auto& step : steps_) {
        const int phases = step->phases(s);
        for (int phase = 0; phase < phases; ++phase, counter ^= 1) {
          if (index == 0) s.next[counter ^ 1].store(0, std::memory_order_relaxed);
          step->run({s, index, s.next[counter]}, phase);
          if (index == 0) s.leave[counter] = s.stopping();
          barrier.arrive_and_wait();
          if (s.leave[counter]) return;
        }
      }
    };
    if (s.workers == 1)
      body(0);
    else
      b.executor->run(s.workers, body);
  } else {
    for (const auto& step : steps_) {
      const int phases = step->phases(s);
      for (int phase = 0; phase < phases && !s.stopping(); ++phase) {
        s.next[0].store(0, std::memory_order_relaxed);
        b.executor->run(s.workers, [&](unsigned index) { step->run({s, index, s.next[0]}, phase); });
      }
    }
  }
  if (s.stopped.load()) return error{errc::cancelled, "cancelled", {}};
  return {};
}

}  // namespace flywheel::inline v0::device
