#include "flywheel/device/accelerator.hpp"

#include <optional>
#include <utility>
#include <vector>

#include "flywheel/core/isa.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/graph/work.hpp"
#include "src/device/accelerator/linear_program.hpp"

namespace flywheel::inline v0::device {
namespace {

/// A chip is wanted for its speed, but also for its energy, or to leave the CPU to others: only products that a scalar
/// loop finishes within a launch are not worth a submission in any case.
constexpr double scalar_multiply_adds_per_second = 0.5e9;

class accelerator final : public device {
 public:
  accelerator(std::shared_ptr<const vendor_device> owner, kernels::cluster isa)
      : owner_(std::move(owner)),
        kernels_(kernels::select(isa)),
        programs_(std::make_shared<program_store>(
            owner_, blob_cache(owner_->options().blob_cache, owner_->options().blob_cache_bytes))),
        buffers_(std::make_shared<io_pool>(owner_)) {
    const flywheel_device_caps& c = owner_->caps();
    caps_.name = c.name;
    caps_.vendor = c.vendor;
    caps_.arch = c.arch;
    caps_.driver = c.driver;
    caps_.unified_memory = c.unified_memory != 0;
    caps_.static_shapes = c.static_shapes != 0;
    caps_.tile = {c.tile_m, c.tile_n, c.tile_k};
    caps_.scratch_bytes = c.scratch_bytes;
    caps_.memory_bytes = c.memory_bytes;
    caps_.queues = c.queues;
    for (std::uint32_t i = 0; i < c.n_weight_formats; ++i)
      caps_.weight_formats.push_back({c.weight_formats[i].bits, c.weight_formats[i].group});
    caps_.multiply_adds_per_second = c.multiply_adds_per_second;
    caps_.bytes_per_second = c.bytes_per_second;
    caps_.launch_seconds = c.launch_seconds;
    caps_.min_multiply_adds = owner_->options().min_multiply_adds >= 0
                                  ? owner_->options().min_multiply_adds
                                  : static_cast<std::int64_t>(c.launch_seconds * scalar_multiply_adds_per_second);
  }

  const capabilities& caps() const noexcept override { return caps_; }

  support query(const graph::graph& g, const graph::node& n) const override {
    const auto no = [](std::string why) { return support{false, std::move(why), 0, 0}; };
    if (owner_->lost()) return no("the device is lost");
    if (n.kind != graph::op::linear) return no("no product with a matrix of weights");
    const auto& a = n.as<graph::linear_attributes>();
    if (a.weights > most_products) return no("more than " + std::to_string(most_products) + " products at once");
    support answer{true, {}, 0, 0};
    const flywheel_device_caps& c = owner_->caps();
    std::optional<flywheel_weight_format> first;
    std::vector<flywheel_matmul> ops;
    for (std::size_t i = 0; i < a.weights; ++i) {
      const graph::weight_info& w = *g.weight_of(n.inputs[a.weight_input(i)]);
      const std::optional<flywheel_weight_format> format = vendor_format(w.type);
      if (!format) return no("weights of type " + std::string(flywheel::to_string(w.type)) + " (" + w.name + ")");
      if (!first) first = format;
      if (first->group != format->group) return no("weights of different groups share one input (" + w.name + ")");
      if (w.dims.cols() > longest_row) return no("rows of " + std::to_string(w.dims.cols()) + " elements are too long");
      const flywheel_matmul op = product_of(w);
      flywheel_support own{};
      own.size = sizeof own;
      if (const flywheel_status status = owner_->table().query(owner_->self(), &op, &own); status != FLYWHEEL_OK)
        return no(owner_->failure("asking", status).message);
      own.reason[sizeof own.reason - 1] = '\0';
      if (!own.ok) return no(std::string(own.reason) + " (" + w.name + ")");
      std::uint64_t packed = 0;
      if (const flywheel_status status = owner_->table().packed_size(owner_->self(), &op, &packed);
          status != FLYWHEEL_OK)
        return no(owner_->failure("asking for the packed size of " + w.name, status).message);
      for (const std::uint64_t limit : {c.max_buffer_bytes, c.memory_bytes})
        if (limit != 0 && packed > limit)
          return no("packed weights of " + std::to_string(packed) + " bytes, more than its " + std::to_string(limit) +
                    " (" + w.name + ")");
      ops.push_back(op);
      answer.scratch_bytes = std::max(answer.scratch_bytes, own.scratch_bytes);
      answer.seconds += own.seconds;
    }
    if (const std::uint64_t largest = linear_program::largest_buffer(ops, c);
        c.max_buffer_bytes != 0 && largest > c.max_buffer_bytes)
      return no("activations or results of " + std::to_string(largest) + " bytes, more than its " +
                std::to_string(c.max_buffer_bytes));
    if (const std::int64_t work = graph::multiply_adds(g, n); work < caps_.min_multiply_adds)
      return no("too little work: " + std::to_string(work) + " multiply-adds per row, fewer than " +
                std::to_string(caps_.min_multiply_adds));
    // One launch serves all products of the node.
    answer.seconds -= caps_.launch_seconds * static_cast<double>(answer.seconds > 0 ? a.weights - 1 : 0);
    return answer;
  }

  result<std::shared_ptr<const device_weights>> measure(std::span<const subgraph> parts,
                                                        const io::archive& file) const override {
    return detail::guarded([&]() -> result<std::shared_ptr<const device_weights>> {
      FLYWHEEL_TRY(accelerator_weights sizes, accelerator_weights::layout(parts, file, owner_));
      return std::shared_ptr<const device_weights>(std::make_shared<accelerator_weights>(std::move(sizes)));
    });
  }

  result<std::shared_ptr<const device_weights>> load(std::span<const subgraph> parts, const io::archive& file,
                                                     executor& pool, std::pmr::memory_resource* /*memory*/,
                                                     const control& control) const override {
    return detail::guarded([&] { return accelerator_weights::load(parts, file, owner_, pool, control); });
  }

  result<std::unique_ptr<const executable>> compile(const subgraph& part,
                                                    std::shared_ptr<const device_weights> weights) const override {
    return detail::guarded(
        [&] { return linear_program::compile(part, kernels_, owner_, programs_, buffers_, std::move(weights)); });
  }

 private:
  static constexpr std::int64_t longest_row = 131071;  ///< See flywheel_matmul.
  std::shared_ptr<const vendor_device> owner_;
  const kernels::kernel_set& kernels_;
  std::shared_ptr<program_store> programs_;
  std::shared_ptr<io_pool> buffers_;
  capabilities caps_;
};

}  // namespace

result<std::shared_ptr<const device>> make_accelerator(const flywheel_device_table& table, std::string_view isa,
                                                       accelerator_options options) {
  return detail::guarded([&]() -> result<std::shared_ptr<const device>> {
    FLYWHEEL_TRY(const std::shared_ptr<const vendor_device> owner, vendor_device::adopt(table, std::move(options)));
    FLYWHEEL_TRY(const isa_report report, detect_isa(isa));
    return std::shared_ptr<const device>(std::make_shared<accelerator>(owner, kernels::find_cluster(report.selected)));
  });
}

}  // namespace flywheel::inline v0::device
