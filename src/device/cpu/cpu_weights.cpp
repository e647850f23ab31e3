#include "src/device/cpu/cpu_weights.hpp"

#include <algorithm>
#include <cstring>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"

namespace flywheel::inline v0::device {
namespace {

constexpr std::size_t aligned(std::size_t bytes) {
  return (bytes + buffer::alignment - 1) / buffer::alignment * buffer::alignment;
}

/// Calls f(value, use) for every weight input of a node.
template <class F>
void for_each_weight(const graph::graph& g, const graph::node& n, F&& f) {
  for (std::size_t i = 0; i < n.inputs.size(); ++i) {
    if (!g.weight_of(n.inputs[i])) continue;
    weight_use use = weight_use::vector;
    if (n.kind == graph::op::embed) {
      use = weight_use::rows;
    } else if (n.kind == graph::op::moe_ffn && i <= graph::moe_attributes::down) {
      use = weight_use::matmul;
    } else if (n.kind == graph::op::linear && i >= 1 && i <= n.as<graph::linear_attributes>().weights) {
      use = weight_use::matmul;
    } else if (n.kind == graph::op::delta_net && i == 4) {  // taps: vectors of channels
      use = weight_use::transposed;
    }
    f(n.inputs[i], use);
  }
}

error no_codec(const graph::weight_info& w) {
  const dtype_info* known = info(w.type);
  const std::string type =
      known ? std::string(known->name) : "number " + std::to_string(static_cast<std::uint32_t>(w.type));
  return {errc::unsupported, "unsupported tensor type " + type + ": this version cannot compute with it", w.name};
}

/// `source`: the whole tensor, whose matrices have `file_rows` rows.
result<void> pack_matrix(const packed_weight& w, std::span<const std::byte> source, std::int64_t file_rows,
                         std::byte* out, executor& pool) {
  const std::size_t stride = row_bytes(w.type, w.k);
  const std::int64_t per_expert = w.panels();
  const auto all = static_cast<std::size_t>(w.experts * per_expert);
  const std::size_t grain = std::max<std::size_t>(1, (std::size_t{1} << 16) / w.panel_bytes);
  parallel_for(pool, all, grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t p = begin; p < end; ++p) {
      const std::int64_t expert = static_cast<std::int64_t>(p) / per_expert;
      const std::int64_t column = static_cast<std::int64_t>(p) % per_expert * w.kernel->panel_cols;
      const auto cols = static_cast<std::int32_t>(std::min<std::int64_t>(w.kernel->panel_cols, w.n - column));
      const std::byte* rows =
          source.data() + static_cast<std::size_t>(expert * file_rows + w.first_row + column) * stride;
      w.kernel->pack(rows, stride, cols, w.k, out + p * w.panel_bytes);
    }
  });
  return {};
}

result<void> decode_transposed(const packed_weight& w, std::span<const std::byte> source, std::span<float> out,
                               std::pmr::memory_resource* memory) {
  FLYWHEEL_TRY(buffer scratch, buffer::allocate(out.size_bytes(), memory));
  const std::span<float> plain(reinterpret_cast<float*>(scratch.mutable_data()), out.size());
  FLYWHEEL_CHECK(formats::decode(tensor_view(w.type, w.dims, source.data()), plain));
  const auto cols = static_cast<std::size_t>(w.dims.cols()), rows = out.size() / cols;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < cols; ++c) out[c * rows + r] = plain[r * cols + c];
  return {};
}

}  // namespace

const packed_weight* cpu_weights::find(const graph::weight_info& weight, weight_use use) const {
  const auto it = weights_.find({weight.name, weight.first_row, weight.dims.elements(), use});
  return it == weights_.end() ? nullptr : &it->second;
}

result<cpu_weights> cpu_weights::layout(std::span<const subgraph> parts, const io::archive& file, kernels::cluster isa,
                                        activation_scales activations) {
  cpu_weights out;
  std::optional<error> failure;
  for (const auto& [whole, index] : nodes_of(parts)) {
    const graph::graph& g = *whole;
    for_each_weight(g, g.nodes[index], [&](graph::value v, weight_use use) {
      const graph::weight_info& info = *g.weight_of(v);
      if (failure || out.find(info, use)) return;
      packed_weight w;
      w.use = use;
      w.type = info.type;
      w.dims = info.dims;
      w.first_row = info.first_row;
      w.to_f32 = kernels::find_to_f32(isa, info.type);
      w.kernel = use == weight_use::matmul ? kernels::find_matmul(isa, info.type, activations) : nullptr;
      const io::tensor_info* tensor = file.find(info.name);
      if (!tensor) {
        failure = error{errc::not_found, "the file has no such tensor", info.name};
      } else if (!w.to_f32 || (use == weight_use::matmul && !w.kernel)) {
        failure = no_codec(info);
      } else if (use != weight_use::matmul && tensor->dims.elements() != info.dims.elements()) {
        failure = error{errc::unsupported, "unsupported: only products can use some rows of a tensor", info.name};
      } else if (use == weight_use::matmul && kernels::exceeds_sums(info.type, info.dims.cols())) {
        failure = error{errc::unsupported,
                        "rows of " + std::to_string(info.dims.cols()) + " elements are too long for " +
                            std::string(to_string(info.type)) + "; the limit is " +
                            std::to_string(kernels::longest_channel_row),
                        info.name};
      } else if (use == weight_use::matmul) {
        w.experts = info.dims.rank() == 3 ? info.dims[0] : 1;
        w.n = info.dims[info.dims.rank() - 2];
        w.k = info.dims.cols();
        w.panel_bytes = w.kernel->panel_bytes(w.k);
        w.bytes = static_cast<std::size_t>(w.experts * w.panels()) * w.panel_bytes;
      } else if (use == weight_use::vector || use == weight_use::transposed) {
        w.bytes = aligned(static_cast<std::size_t>(info.dims.elements()) * sizeof(float));
      } else {
        // Rows that the system can page in from the file need no memory of ours.
        w.bytes = file.view(*tensor) ? 0 : aligned(static_cast<std::size_t>(tensor->bytes));
      }
      w.offset = out.total_;
      out.total_ += w.bytes;
      out.weights_.emplace(key(info.name, info.first_row, info.dims.elements(), use), w);
    });
    if (failure) return *failure;
  }
  out.file_ = file;
  return out;
}

result<std::shared_ptr<const device_weights>> cpu_weights::load(std::span<const subgraph> parts,
                                                                const io::archive& file, kernels::cluster isa,
                                                                activation_scales activations, executor& pool,
                                                                std::pmr::memory_resource* memory,
                                                                const control& control) {
  FLYWHEEL_TRY(cpu_weights loaded, layout(parts, file, isa, activations));
  FLYWHEEL_TRY(loaded.storage_, buffer::allocate(loaded.total_, memory));
  std::uint64_t done = 0;
  for (auto& [key, w] : loaded.weights_) {
    const std::string& name = std::get<0>(key);
    if (control.stopped()) return error{errc::cancelled, "loading was cancelled", name};
    if (control.progress) control.progress(done, loaded.total_, "packing weights");
    const io::tensor_info& tensor = *file.find(name);
    if (w.use == weight_use::rows && w.bytes == 0) {
      FLYWHEEL_TRY(const tensor_view view, file.view(tensor));
      w.data = view.data;
      continue;
    }
    std::byte* out = loaded.storage_.mutable_data() + w.offset;
    w.data = out;
    if (w.use == weight_use::rows) {
      FLYWHEEL_CHECK(file.read(tensor, 0, {out, static_cast<std::size_t>(tensor.bytes)}));
    } else {
      buffer scratch;
      FLYWHEEL_TRY(const std::span<const std::byte> source, file.bytes(tensor, scratch, memory));
      const std::span<float> floats(reinterpret_cast<float*>(out), static_cast<std::size_t>(w.dims.elements()));
      if (w.use == weight_use::vector)
        FLYWHEEL_CHECK(formats::decode(tensor_view(w.type, w.dims, source.data()), floats));
      else if (w.use == weight_use::transposed)
        FLYWHEEL_CHECK(decode_transposed(w, source, floats, memory));
      else
        FLYWHEEL_CHECK(
            pack_matrix(w, source, tensor.dims.rank() < 2 ? 1 : tensor.dims[tensor.dims.rank() - 2], out, pool));
      if (!loaded.find({name, tensor.type, tensor.dims}, weight_use::rows)) file.release(tensor);
    }
    done += w.bytes;
  }
  if (control.progress) control.progress(loaded.total_, loaded.total_, "packing weights");
  return std::shared_ptr<const device_weights>(std::make_shared<cpu_weights>(std::move(loaded)));
}

}  // namespace flywheel::inline v0::device
