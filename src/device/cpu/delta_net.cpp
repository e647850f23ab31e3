// delta_net: everything between the projections of a gated delta-net layer belongs to one value head of one sequence,
// hence to one worker: one phase, whatever the number of tokens.
#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {
namespace {

class delta_net_step final : public step {
 public:
  delta_net_step(const compile_context& c, const graph::node& n)
      : kernels_(c.kernels),
        layer_(static_cast<std::size_t>(n.as<graph::delta_net_attributes>().layer)),
        qkv_(c.value(n.inputs[0])),
        z_(c.value(n.inputs[1])),
        beta_(c.value(n.inputs[2])),
        alpha_(c.value(n.inputs[3])),
        out_(c.value(n.outputs[0])) {
    const auto& a = n.as<graph::delta_net_attributes>();
    args_.taps = c.transposed(n.inputs[4]);
    args_.dt = c.vector(n.inputs[5]);
    args_.a = c.vector(n.inputs[6]);
    args_.norm = c.vector(n.inputs[7]);
    args_.n_k_heads = a.n_k_heads;
    args_.n_v_heads = a.n_v_heads;
    args_.head_k_dim = a.head_k_dim;
    args_.head_v_dim = a.head_v_dim;
    args_.conv_kernel = a.conv_kernel;
    args_.norm_eps = a.eps;
  }

  std::size_t own_bytes(std::int64_t /*max_tokens*/, std::int64_t /*max_outputs*/) const override {
    return align64(kernels_.delta_net_scratch(args_) * sizeof(float));
  }

  void run(const worker_state& w, int /*phase*/) const override {
    const auto sequences = w.run.bound->sequences;
    w.take(static_cast<std::int64_t>(sequences.size()) * args_.n_v_heads, [&](std::int64_t task) {
      const auto sequence = static_cast<std::size_t>(task / args_.n_v_heads);
      std::int64_t row = 0;
      for (const sequence_slice& before : sequences.first(sequence)) row += before.n_tokens;
      const sequence_slice& slice = sequences[sequence];
      if (slice.n_tokens == 0) return;
      kernels::delta_net_args args = args_;
      args.qkv = w.run.at(qkv_) + row * qkv_.cols;
      args.z = w.run.at(z_) + row * z_.cols;
      args.beta = w.run.at(beta_) + row * beta_.cols;
      args.alpha = w.run.at(alpha_) + row * alpha_.cols;
      args.out = w.run.at(out_) + row * out_.cols;
      args.state = reinterpret_cast<const float*>(slice.state[layer_]);
      args.next_state = reinterpret_cast<float*>(slice.next_state[layer_]);
      args.n_tokens = slice.n_tokens;
      kernels_.delta_net(args, task % args_.n_v_heads, reinterpret_cast<float*>(w.own()));
    });
  }

 private:
  const kernels::kernel_set& kernels_;
  std::size_t layer_;
  operand qkv_, z_, beta_, alpha_, out_;
  kernels::delta_net_args args_;
};

}  // namespace

std::unique_ptr<step> make_delta_net(const compile_context& c, const graph::node& n) {
  return std::make_unique<delta_net_step>(c, n);
}

}  // namespace flywheel::inline v0::device
