#include "src/device/accelerator/accelerator_weights.hpp"

#include <algorithm>
#include <cstring>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/formats/g128.hpp"

namespace flywheel::inline v0::device {
namespace {

constexpr std::uint64_t most_packed_bytes = std::uint64_t{1} << 48;  ///< Sizes are added.

/// Codes and scales of one stored row; `codes` [k], `scales` [groups].
void take_row(dtype type, const std::uint8_t* row, std::int64_t k, std::int8_t* codes, float* scales) {
  const auto low = [](std::uint8_t two) { return static_cast<std::int8_t>((two & 15) - 8); };
  const auto high = [](std::uint8_t two) { return static_cast<std::int8_t>((two >> 4) - 8); };
  switch (type) {
    case dtype::q8_channel:
      std::memcpy(scales, row, sizeof(float));
      std::memcpy(codes, row + row_header_bytes, static_cast<std::size_t>(k));
      return;
    case dtype::q4_channel:
      std::memcpy(scales, row, sizeof(float));
      for (std::int64_t j = 0; j < k; j += 2) {
        codes[j] = low(row[row_header_bytes + static_cast<std::size_t>(j / 2)]);
        codes[j + 1] = high(row[row_header_bytes + static_cast<std::size_t>(j / 2)]);
      }
      return;
    case dtype::q8_g128:
      for (std::int64_t j = 0; j < k; j += 128, codes += 128, ++scales) {
        const auto& block = reinterpret_cast<const formats::codec<dtype::q8_g128>::block*>(row)[j / 128];
        *scales = formats::load_f16(block.d);
        std::memcpy(codes, block.qs, 128);
      }
      return;
    default:  // q4_g128
      for (std::int64_t j = 0; j < k; j += 128, codes += 128, ++scales) {
        const auto& block = reinterpret_cast<const formats::codec<dtype::q4_g128>::block*>(row)[j / 128];
        *scales = formats::load_f16(block.d);
        for (int i = 0; i < 64; ++i) codes[i] = low(block.qs[i]), codes[i + 64] = high(block.qs[i]);
      }
      return;
  }
}

std::int64_t groups_of(const flywheel_matmul& op) {
  return op.weights.group == 0 ? 1 : (op.k + op.weights.group - 1) / op.weights.group;
}

}  // namespace

std::optional<flywheel_weight_format> vendor_format(dtype type) noexcept {
  switch (type) {
    case dtype::q8_channel:
      return flywheel_weight_format{8, 0};
    case dtype::q4_channel:
      return flywheel_weight_format{4, 0};
    case dtype::q8_g128:
      return flywheel_weight_format{8, 128};
    case dtype::q4_g128:
      return flywheel_weight_format{4, 128};
    default:
      return {};
  }
}

flywheel_matmul product_of(const graph::weight_info& weight) noexcept {
  flywheel_matmul op{};
  op.size = sizeof op;
  op.kind = FLYWHEEL_OP_MATMUL;
  op.n = weight.dims[0];
  op.k = weight.dims.cols();
  op.weights = *vendor_format(weight.type);
  return op;
}

result<accelerator_weights> accelerator_weights::layout(std::span<const subgraph> parts, const io::archive& file,
                                                        const std::shared_ptr<const vendor_device>& owner) {
  accelerator_weights out;
  for (const auto& [whole, index] : nodes_of(parts)) {
    const graph::graph& g = *whole;
    const graph::node& n = g.nodes[index];
    const auto count = n.as<graph::linear_attributes>().weights;
    for (std::size_t i = 0; i < n.inputs.size(); ++i) {
      const graph::weight_info* w = g.weight_of(n.inputs[i]);
      if (!w) continue;
      if (!file.find(w->name)) return error{errc::not_found, "the file has no such tensor", w->name};
      if (i < 1 || i > count) {
        if (out.vectors_.try_emplace(key_of(*w), *w, std::vector<float>()).second)
          out.total_ += static_cast<std::uint64_t>(w->dims.elements()) * sizeof(float);
        continue;
      }
      const auto [at, fresh] = out.matrices_.try_emplace(key_of(*w), *w, vendor_matrix{});
      if (!fresh) continue;
      vendor_matrix& m = at->second.second;
      m.op = product_of(*w);
      if (const flywheel_status status = owner->table().packed_size(owner->self(), &m.op, &m.packed_bytes);
          status != FLYWHEEL_OK)
        return owner->failure("asking for the packed size of " + w->name, status);
      if (m.packed_bytes > most_packed_bytes)
        return error{errc::device, "packed weights of " + std::to_string(m.packed_bytes) + " bytes make no sense",
                     owner->name()};
      out.total_ += m.packed_bytes;
    }
  }
  return out;
}

result<std::shared_ptr<const device_weights>> accelerator_weights::load(std::span<const subgraph> parts,
                                                                        const io::archive& file,
                                                                        std::shared_ptr<const vendor_device> owner,
                                                                        executor& pool, const control& control) {
  FLYWHEEL_TRY(accelerator_weights out, layout(parts, file, owner));
  std::uint64_t done = 0;
  for (auto& [name, entry] : out.matrices_) {
    auto& [weight, matrix] = entry;
    if (control.stopped()) return error{errc::cancelled, "loading was cancelled", weight.name};
    if (control.progress) control.progress(done, out.total_, "packing weights");
    FLYWHEEL_CHECK(out.upload(weight, matrix, file, owner, pool));
    done += matrix.packed_bytes;
  }
  for (auto& [name, entry] : out.vectors_) {
    auto& [weight, floats] = entry;
    const io::tensor_info& tensor = *file.find(weight.name);
    buffer scratch;
    FLYWHEEL_TRY(const std::span<const std::byte> source, file.bytes(tensor, scratch));
    floats.resize(static_cast<std::size_t>(weight.dims.elements()));
    FLYWHEEL_CHECK(formats::decode(tensor_view(weight.type, weight.dims, source.data()), floats));
  }
  if (control.progress) control.progress(out.total_, out.total_, "packing weights");
  out.loaded_ = true;
  return std::shared_ptr<const device_weights>(std::make_shared<accelerator_weights>(std::move(out)));
}

result<void> accelerator_weights::upload(const graph::weight_info& weight, vendor_matrix& m, const io::archive& file,
                                         const std::shared_ptr<const vendor_device>& owner, executor& pool) {
  const io::tensor_info& tensor = *file.find(weight.name);
  const auto n = static_cast<std::size_t>(m.op.n), k = static_cast<std::size_t>(m.op.k);
  const auto groups = static_cast<std::size_t>(groups_of(m.op));
  std::vector<std::int8_t> codes(n * k);  // [n, k]
  std::vector<float> scales(n * groups);  // [n, groups]
  {
    buffer scratch;
    FLYWHEEL_TRY(const std::span<const std::byte> source, file.bytes(tensor, scratch));
    const std::size_t stride = row_bytes(weight.type, m.op.k);
    const auto* rows =
        reinterpret_cast<const std::uint8_t*>(source.data()) + static_cast<std::size_t>(weight.first_row) * stride;
    parallel_for(pool, n, std::max<std::size_t>(1, (std::size_t{1} << 16) / k),
                 [&](std::size_t begin, std::size_t end) {
                   for (std::size_t r = begin; r < end; ++r)
                     take_row(weight.type, rows + r * stride, m.op.k, codes.data() + r * k, scales.data() + r * groups);
                 });
  }
  file.release(tensor);
  // Symmetric codes have no -128, which devices need not compute.
  if (m.op.weights.bits == 8 && std::find(codes.begin(), codes.end(), std::int8_t{-128}) != codes.end())
    return error{errc::malformed, "8-bit codes are between -127 and 127, but there is a -128", weight.name};
  FLYWHEEL_TRY(m.memory, vendor_buffer::make(owner, m.packed_bytes));
  const flywheel_status status = owner->persist("uploading weights", [&] {
    void* address = nullptr;
    flywheel_status done = m.memory.map(FLYWHEEL_MAP_WRITE, address);
    if (done != FLYWHEEL_OK) return done;
    done = owner->table().pack(owner->self(), &m.op, codes.data(), scales.data(), address);
    const flywheel_status unmapped = m.memory.unmap();
    return done != FLYWHEEL_OK ? done : unmapped;
  });
  if (status != FLYWHEEL_OK) return owner->failure("uploading " + weight.name, status);
  return {};
}

const vendor_matrix* accelerator_weights::matrix(const graph::weight_info& weight) const {
  const auto at = matrices_.find(key_of(weight));
  return at == matrices_.end() ? nullptr : &at->second.second;
}

const float* accelerator_weights::vector(const graph::weight_info& weight) const {
  const auto at = vectors_.find(key_of(weight));
  return at == vectors_.end() || at->second.second.empty() ? nullptr : at->second.second.data();
}

}  // namespace flywheel::inline v0::device
