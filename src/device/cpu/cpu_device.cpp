#include "flywheel/core/isa.hpp"
#include "flywheel/detail/try.hpp"
#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {
namespace {

class cpu_device final : public device {
 public:
  cpu_device(kernels::cluster isa, activation_scales activations)
      : isa_(isa), activations_(activations), kernels_(kernels::select(isa)) {
    caps_.name = "cpu";
    caps_.vendor = "flywheel";
    caps_.arch = std::string(kernels::cluster_names[static_cast<std::size_t>(isa)]);
  }

  const capabilities& caps() const noexcept override { return caps_; }

  support query(const graph::graph& g, const graph::node& n) const override {
    if (n.kind == graph::op::attention) {
      const auto head_dim = n.as<graph::attention_attributes>().head_dim;
      if (head_dim % 8 != 0)
        return {false, "attention heads of " + std::to_string(head_dim) + " elements, not a multiple of 8", 0, 0};
    }
    if (n.kind == graph::op::delta_net) {
      const auto& a = n.as<graph::delta_net_attributes>();
      for (const std::int64_t dim : {a.head_k_dim, a.head_v_dim})
        if (dim % kernels::delta_net_granularity != 0)
          return {false, "delta-net heads of " + std::to_string(dim) + " elements, not a multiple of 16", 0, 0};
    }
    for (graph::value v : n.inputs)
      if (const graph::weight_info* w = g.weight_of(v); w && !kernels::find_to_f32(isa_, w->type))
        return {false, "unsupported tensor type of " + w->name + ": " + type_name(w->type), 0, 0};
    return {true, {}, 0, 0};
  }

  result<std::shared_ptr<const device_weights>> measure(std::span<const subgraph> parts,
                                                        const io::archive& file) const override {
    return detail::guarded([&]() -> result<std::shared_ptr<const device_weights>> {
      FLYWHEEL_TRY(cpu_weights sizes, cpu_weights::layout(parts, file, isa_, activations_));
      return std::shared_ptr<const device_weights>(std::make_shared<cpu_weights>(std::move(sizes)));
    });
  }

  result<std::shared_ptr<const device_weights>> load(std::span<const subgraph> parts, const io::archive& file,
                                                     executor& pool, std::pmr::memory_resource* memory,
                                                     const control& control) const override {
    return detail::guarded([&] { return cpu_weights::load(parts, file, isa_, activations_, pool, memory, control); });
  }

  result<std::unique_ptr<const executable>> compile(const subgraph& part,
                                                    std::shared_ptr<const device_weights> weights) const override {
    return detail::guarded([&] { return program::compile(part, kernels_, std::move(weights)); });
  }

 private:
  static std::string type_name(dtype type) {
    const dtype_info* known = info(type);
    return known ? std::string(known->name) : "number " + std::to_string(static_cast<std::uint32_t>(type));
  }
  kernels::cluster isa_;
  activation_scales activations_;
  const kernels::kernel_set& kernels_;
  capabilities caps_;
};

}  // namespace

result<std::shared_ptr<const device>> make_cpu_device(std::string_view isa, activation_scales activations) {
  return detail::guarded([&]() -> result<std::shared_ptr<const device>> {
    FLYWHEEL_TRY(const isa_report report, detect_isa(isa));
    return std::shared_ptr<const device>(
        std::make_shared<cpu_device>(kernels::find_cluster(report.selected), activations));
  });
}

}  // namespace flywheel::inline v0::device
