#include "src/device/accelerator/linear_program.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device {
namespace {

constexpr std::uint64_t rounded_up(std::uint64_t n, std::uint64_t unit) { return (n + unit - 1) / unit * unit; }

/// What the device asks for, and what the host's vectors like.
std::uint64_t region_alignment(const flywheel_device_caps& caps) { return std::max<std::uint64_t>(caps.alignment, 64); }

}  // namespace

/// A bucket of rows on its way.
struct linear_program::job {
  std::size_t bucket = 0;
  std::int64_t first = 0, rows = 0;
  io_buffers memory;
  flywheel_fence fence = 0;
  bool placed = false;           ///< Holds a place on the device.
  std::byte* results = nullptr;  ///< The mapped output, once it is there.
};

result<std::unique_ptr<const executable>> linear_program::compile(const subgraph& part,
                                                                  const kernels::kernel_set& kernels,
                                                                  std::shared_ptr<const vendor_device> owner,
                                                                  std::shared_ptr<program_store> programs,
                                                                  std::shared_ptr<io_pool> buffers,
                                                                  std::shared_ptr<const device_weights> weights) {
  const auto* packed = dynamic_cast<const accelerator_weights*>(weights.get());
  if (!packed) return error{errc::invalid_argument, "the weights were loaded by another device", owner->name()};
  const graph::graph& g = *part.whole;
  const auto place_of = [&](graph::value v) {
    place p;
    p.value = v;
    if (!v.valid()) return p;
    p.cols = g.at(v).cols;
    p.outputs = g.at(v).rows == graph::row_kind::outputs;
    for (std::size_t i = 0; i < g.outputs.size(); ++i)
      if (g.outputs[i] == v) p.result = static_cast<std::uint32_t>(i);
    return p;
  };
  const auto vector_of = [&](graph::value v) -> const float* {
    return v.valid() ? packed->vector(*g.weight_of(v)) : nullptr;
  };
  std::unique_ptr<linear_program> out(new linear_program(owner, std::move(buffers)));
  out->kernels_ = &kernels;
  for (const std::uint32_t index : part.nodes) {
    const graph::node& n = g.nodes[index];
    if (n.kind != graph::op::linear)
      return error{errc::invalid_argument, "only linear nodes can be compiled for it", owner->name()};
    step s;
    s.attributes = n.as<graph::linear_attributes>();
    const graph::linear_attributes& a = s.attributes;
    s.x = place_of(n.inputs[0]);
    if (a.norm) s.norm = vector_of(n.inputs[a.norm_input()]);
    if (a.residual) s.residual = place_of(n.inputs[a.residual_input()]);
    std::vector<flywheel_matmul> ops;
    for (std::size_t i = 0; i < a.weights; ++i) {
      product p;
      p.matrix = packed->matrix(*g.weight_of(n.inputs[a.weight_input(i)]));
      if (!p.matrix) return error{errc::invalid_argument, "a weight of the part was not loaded", owner->name()};
      if (a.biases) p.bias = vector_of(n.inputs[a.bias_input(i)]);
      p.out = place_of(n.outputs[a.glu ? 0 : i]);
      ops.push_back(p.matrix->op);
      s.products.push_back(p);
    }
    s.group = ops[0].weights.group == 0 ? s.x.cols : ops[0].weights.group;
    if (packed->loaded())
      for (std::size_t b = 0; b < bucket_rows.size(); ++b) {
        FLYWHEEL_TRY(s.programs[b], programs->get(ops, bucket_rows[b]));
      }
    out->steps_.push_back(std::move(s));
  }
  out->weights_ = std::move(weights);
  return std::unique_ptr<const executable>(std::move(out));
}

std::size_t linear_program::scratch_bytes(std::int64_t max_tokens, std::int64_t max_outputs, unsigned) const {
  std::size_t most = 0;  // the normalized rows of one step
  for (const step& s : steps_)
    if (s.attributes.norm)
      most = std::max(most, static_cast<std::size_t>(rows_of(s.x, max_tokens, max_outputs) * s.x.cols) * sizeof(float));
  return most;
}

std::uint64_t linear_program::scales_at(const step& s, std::size_t bucket) const {
  return rounded_up(static_cast<std::uint64_t>(bucket_rows[bucket] * s.x.cols), region_alignment(owner_->caps()));
}

std::uint64_t linear_program::output_bytes(std::int64_t n, std::size_t bucket, const flywheel_device_caps& caps) {
  return rounded_up(static_cast<std::uint64_t>(bucket_rows[bucket] * n) * sizeof(float), region_alignment(caps));
}

std::uint64_t linear_program::largest_buffer(std::span<const flywheel_matmul> ops, const flywheel_device_caps& caps) {
  constexpr std::size_t largest = bucket_rows.size() - 1;
  std::uint64_t outputs = 0, input = 0;
  for (const flywheel_matmul& op : ops) {
    outputs += output_bytes(op.n, largest, caps);
    input = static_cast<std::uint64_t>(bucket_rows[largest] * op.k) * 2;  // scales take less than codes
  }
  return std::max(outputs, input);
}

/// One run of one step.
class linear_program::runner {
 public:
  runner(const linear_program& program, const step& s, const bindings& b)
      : program_(program), owner_(*program.owner_), step_(s), b_(b) {
    rows_ =
        program.rows_of(s.x, static_cast<std::int64_t>(b.ids.size()), static_cast<std::int64_t>(b.output_rows.size()));
  }

  result<void> run() {
    std::vector<job> jobs;
    program_.buckets_.for_each(rows_, [&](std::size_t bucket, std::int64_t first, std::int64_t rows) {
      jobs.push_back({bucket, first, rows, {}, 0, false, nullptr});
    });
    const cleaner at_the_end{*this, jobs};
    // Where a residual is added, the result may lie over it: it is written only when nothing can fail any more, so that
    // another device can do all of it again.
    const bool late = step_.attributes.residual;
    std::size_t finished = 0;
    const auto finish_next = [&]() -> result<void> {
      job& j = jobs[finished++];
      FLYWHEEL_CHECK(finish(j));
      if (late) return {};
      store(j);
      clean_up(j);
      return {};
    };
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      if (b_.stop.stop_requested()) return error{errc::cancelled, "cancelled", {}};
      FLYWHEEL_CHECK(prepare(jobs[i]));
      // Places are few, and other runs want them, too: who waits for one holds none.
      while (!owner_.try_take_place()) {
        if (finished < i) {
          FLYWHEEL_CHECK(finish_next());
        } else {
          FLYWHEEL_CHECK(wait_for_place());
          break;
        }
      }
      jobs[i].placed = true;
      FLYWHEEL_CHECK(submit(jobs[i]));
      if (i > finished) FLYWHEEL_CHECK(finish_next());  // while the device computes job i
    }
    while (finished < jobs.size()) FLYWHEEL_CHECK(finish_next());
    if (late)
      for (job& j : jobs) store(j);
    return {};
  }

 private:
  template <class Body>
  void for_rows(std::int64_t rows, std::int64_t cols, Body&& body) const {
    if (rows == 1) return body(0);
    const auto grain = static_cast<std::size_t>(std::max<std::int64_t>(1, 8192 / cols));
    parallel_for(*b_.executor, static_cast<std::size_t>(rows), grain, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) body(static_cast<std::int64_t>(r));
    });
  }

  result<void> ask(std::string_view what, flywheel_status status) const {
    if (status == FLYWHEEL_OK) return {};
    owner_.warn(what, status);
    return owner_.lose(what, status);
  }

  /// Writes the rounded activations of a bucket.
  result<void> prepare(job& j) const {
    const std::int64_t k = step_.x.cols, groups = step_.groups();
    std::uint64_t outputs = 0;
    for (const product& p : step_.products) outputs += output_bytes(p.matrix->op.n, j.bucket, owner_.caps());
    const std::uint64_t inputs = program_.scales_at(step_, j.bucket) +
                                 static_cast<std::uint64_t>(bucket_rows[j.bucket] * groups) * sizeof(float);
    FLYWHEEL_TRY(j.memory.input, program_.pool_->take(inputs));
    FLYWHEEL_TRY(j.memory.output, program_.pool_->take(outputs));
    void* address = nullptr;
    const vendor_buffer& memory = j.memory.input;
    FLYWHEEL_CHECK(ask("mapping memory", memory.map(FLYWHEEL_MAP_WRITE, address)));
    auto* codes = static_cast<std::int8_t*>(address);  // [bucket rows, k]; scales: [bucket rows, groups]
    auto* scales = reinterpret_cast<float*>(codes + program_.scales_at(step_, j.bucket));
    const float* x = step_.x.in(b_) + j.first * k;
    auto* normed = reinterpret_cast<float*>(b_.scratch) + j.first * k;  // as x: [rows, k]
    const kernels::kernel_set& kernels = *program_.kernels_;
    for_rows(j.rows, k, [&](std::int64_t r) {
      const float* row = x + r * k;
      if (step_.attributes.norm) {
        kernels.rms_norm(row, step_.norm, step_.attributes.norm->eps, k, normed + r * k);
        row = normed + r * k;
      }
      kernels.f32_to_q8(row, k, step_.group, codes + r * k, scales + r * groups);
    });
    const std::int64_t padding = bucket_rows[j.bucket] - j.rows;
    std::memset(codes + j.rows * k, 0, static_cast<std::size_t>(padding * k));
    std::memset(scales + j.rows * groups, 0, static_cast<std::size_t>(padding * groups) * sizeof(float));
    return ask("unmapping memory", memory.unmap());
  }

  result<void> submit(job& j) const {
    const io_buffers& memory = j.memory;
    const flywheel_input input{{memory.input.get(), 0}, {memory.input.get(), program_.scales_at(step_, j.bucket)}};
    std::array<flywheel_region, most_products> weights{}, outputs{};
    std::uint64_t at = 0;
    for (std::size_t i = 0; i < step_.products.size(); ++i) {
      weights[i] = {step_.products[i].matrix->memory.get(), 0};
      outputs[i] = {memory.output.get(), at};
      at += output_bytes(step_.products[i].matrix->op.n, j.bucket, owner_.caps());
    }
    flywheel_bindings bound{};
    bound.size = sizeof bound;
    bound.n_inputs = 1;
    bound.n_ops = static_cast<std::uint32_t>(step_.products.size());
    bound.inputs = &input;
    bound.weights = weights.data();
    bound.outputs = outputs.data();
    flywheel_executable* program = step_.programs[j.bucket]->get();
    const flywheel_status status = owner_.persist("submitting", [&] {
      j.fence = 0;
      return owner_.table().submit(owner_.self(), program, &bound, nullptr, 0, &j.fence);
    });
    if (status != FLYWHEEL_OK) {
      j.fence = 0;
      return owner_.lose("submitting", status);
    }
    return {};
  }

  /// Until the fence is gone, the device has had every chance, or the caller wants to stop: the last two are
  /// FLYWHEEL_TIMEOUT.
  [[nodiscard]] flywheel_status await(flywheel_fence fence) const {
    using std::chrono::nanoseconds;
    constexpr nanoseconds slice = std::chrono::milliseconds(20);
    for (int attempt = 0;; ++attempt) {
      for (nanoseconds left = owner_.timeout(); left.count() > 0; left -= slice) {
        const auto now = static_cast<std::uint64_t>(std::min(left, slice).count());
        const flywheel_status status = owner_.table().wait(owner_.self(), fence, now);
        if (status != FLYWHEEL_TIMEOUT || b_.stop.stop_requested()) return status;
      }
      if (attempt == 0) owner_.warn("waiting for a submission", FLYWHEEL_TIMEOUT);
      if (attempt >= owner_.options().retries) return FLYWHEEL_TIMEOUT;
    }
  }

  /// Errors: cancelled; device.
  result<void> wait_for_place() const {
    while (!owner_.take_place(std::chrono::milliseconds(20))) {
      if (owner_.lost()) return owner_.lose("the device is lost");
      if (b_.stop.stop_requested()) return error{errc::cancelled, "cancelled", {}};
      program_.pool_->collect();  // places that nobody waits for any more
    }
    return {};
  }

  /// The job's results are there and mapped; or the caller wants to stop; or the device is lost.
  result<void> finish(job& j) const {
    for (int attempt = 0;; ++attempt) {
      const flywheel_status status = await(j.fence);
      if (status == FLYWHEEL_TIMEOUT && b_.stop.stop_requested()) return error{errc::cancelled, "cancelled", {}};
      if (status != FLYWHEEL_TIMEOUT) j.fence = 0;
      if (status == FLYWHEEL_OK) break;
      if (status != FLYWHEEL_TIMEOUT) owner_.warn("waiting for a submission", status);
      if (status != FLYWHEEL_FAILED || attempt >= owner_.options().retries)
        return owner_.lose("waiting for a submission", status);
      FLYWHEEL_CHECK(submit(j));
    }
    owner_.give_place();
    j.placed = false;
    program_.pool_->give_back(std::move(j.memory.input));
    void* address = nullptr;
    // Biases are added where the products are.
    std::uint32_t access = FLYWHEEL_MAP_READ;
    if (step_.attributes.biases) access |= FLYWHEEL_MAP_WRITE;
    FLYWHEEL_CHECK(ask("mapping memory", j.memory.output.map(access, address)));
    j.results = static_cast<std::byte*>(address);
    return {};
  }

  /// Gives back what the job still has. A submission that has not ended keeps its memory and its place.
  void clean_up(job& j) const noexcept {
    try {
      if (std::exchange(j.results, nullptr))
        (void)ask("unmapping memory", j.memory.output.unmap());  // a failure concerns the next run
      if (j.fence != 0 && owner_.table().wait(owner_.self(), j.fence, 0) == FLYWHEEL_TIMEOUT) {
        program_.pool_->abandon(std::exchange(j.fence, 0), std::move(j.memory), step_.programs[j.bucket],
                                program_.weights_);
        j.placed = false;
      } else {
        program_.pool_->give_back(std::move(j.memory.input));
        program_.pool_->give_back(std::move(j.memory.output));
      }
    } catch (...) {  // no memory to keep it in a list: releasing it ends what uses it
    }
    j.fence = 0;
    j.memory = {};
    if (std::exchange(j.placed, false)) owner_.give_place();
  }

  /// Whatever ends the run.
  struct cleaner {
    const runner& of;
    std::vector<job>& jobs;
    ~cleaner() {
      for (job& j : jobs) of.clean_up(j);
    }
  };

  /// What stands behind the products, in the order and arithmetic of the CPU's kernels. Cannot fail.
  void store(job& j) const {
    std::byte* const from = j.results;  // f32 [bucket rows, n] of each product, one behind the other
    const graph::linear_attributes& a = step_.attributes;
    const kernels::kernel_set& kernels = *program_.kernels_;
    const std::int64_t width = step_.products[0].out.cols;
    for_rows(j.rows, width, [&](std::int64_t r) {
      const std::int64_t row = j.first + r;
      const float* residual = a.residual ? step_.residual.in(b_) + row * width : nullptr;
      std::uint64_t at = 0;
      float* gate = nullptr;
      for (std::size_t i = 0; i < step_.products.size(); ++i) {
        const product& p = step_.products[i];
        const std::int64_t n = p.matrix->op.n;
        float* y = reinterpret_cast<float*>(from + at) + r * n;
        at += output_bytes(step_.products[i].matrix->op.n, j.bucket, owner_.caps());
        if (p.bias) kernels.add(y, p.bias, n, y);
        float* out = p.out.in(b_) + row * n;
        if (a.glu) {
          if (i == 0) {
            gate = y;
            continue;
          }
          kernels.glu(*a.glu, gate, y, n, out);
          if (residual) kernels.add(out, residual, n, out);
        } else if (residual) {
          kernels.add(y, residual, n, out);
        } else if (a.act) {
          kernels.activate(*a.act, y, n, out);
        } else {
          std::memcpy(out, y, static_cast<std::size_t>(n) * sizeof(float));
        }
      }
    });
  }

  const linear_program& program_;
  const vendor_device& owner_;
  const step& step_;
  const bindings& b_;
  std::int64_t rows_ = 0;
};

result<void> linear_program::run(const bindings& b) const {
  return detail::guarded([&]() -> result<void> {
    for (const step& s : steps_) {
      if (owner_->lost()) return owner_->lose("the device is lost");
      FLYWHEEL_CHECK(runner(*this, s, b).run());
    }
    return {};
  });
}

}  // namespace flywheel::inline v0::device
