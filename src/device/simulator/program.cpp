#include "src/device/simulator/program.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "src/core/checksum.hpp"

namespace flywheel::inline v0::device::simulation {
namespace {

constexpr std::array<char, 8> magic = {'F', 'W', 'S', 'I', 'M', 'N', 'P', 'U'};
constexpr std::uint32_t blob_version = 1;
constexpr std::size_t length_at = magic.size();
constexpr std::size_t head_bytes = length_at + sizeof(std::uint64_t), checksum_bytes = sizeof(std::uint64_t);

template <class T>
void put(std::vector<std::byte>& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<std::byte>(value >> (8 * i) & 0xFF));
}

template <class T>
T get(std::span<const std::byte> from) noexcept {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(std::to_integer<T>(from[i]) << (8 * i));
  return value;
}

/// Takes numbers off the front; zeros and `short_of` once there are too few bytes.
struct reader {
  std::span<const std::byte> rest;
  bool short_of = false;

  std::span<const std::byte> bytes(std::size_t n) noexcept {
    if (n > rest.size()) short_of = true;
    if (short_of) return {};
    const auto out = rest.first(n);
    rest = rest.subspan(n);
    return out;
  }
  template <class T>
  T number() noexcept {
    const auto b = bytes(sizeof(T));
    return b.empty() ? T{0} : get<T>(b);
  }
};

std::uint64_t checksum_of(std::span<const std::byte> bytes) noexcept {
  flywheel::detail::checksum sum;
  sum.add(bytes);
  return sum.value();
}

std::string shape_text(const product& of) {
  return std::to_string(of.n) + " x " + std::to_string(of.k) + " with " + std::to_string(of.bits) + "-bit weights, " +
         (of.group == 0 ? "a scale per row" : "groups of " + std::to_string(of.group));
}

refusal corrupt(std::string why) { return {FLYWHEEL_CORRUPT, "the blob is damaged: " + std::move(why)}; }

/// Ops of one input agree about it. Null if so.
const char* disagreement(std::span<const operation> ops, std::uint32_t n_inputs) noexcept {
  std::array<const operation*, max_inputs> first{};
  for (const operation& op : ops) {
    if (op.input >= n_inputs) return "an operation reads an input that does not exist";
    const operation*& known = first[op.input];
    if (!known) known = &op;
    if (known->of.k != op.of.k || known->of.group != op.of.group || known->of.rows != op.of.rows)
      return "operations of one input differ in k, group or rows";
  }
  return nullptr;
}

/// Whether the matrix unit multiplies such products at all.
refusal recognise(const profile& p, const product& of) {
  if (of.n < 1 || of.k < 1 || of.rows < 0)
    return {FLYWHEEL_INVALID_ARGUMENT, "a product needs n and k of at least 1 and no negative rows"};
  if (std::none_of(p.formats.begin(), p.formats.end(),
                   [&](const flywheel_weight_format& f) { return f.bits == of.bits && f.group == of.group; }))
    return {FLYWHEEL_UNSUPPORTED, "no " + std::to_string(of.bits) + "-bit weights with " +
                                      (of.group == 0 ? "a scale per row" : "groups of " + std::to_string(of.group)) +
                                      " in this matrix unit"};
  if (of.k > max_k || of.n > max_n || of.rows > max_rows)
    return {FLYWHEEL_UNSUPPORTED, std::to_string(of.rows) + " rows of " + shape_text(of) + ": at most " +
                                      std::to_string(max_rows) + " rows, n " + std::to_string(max_n) + ", k " +
                                      std::to_string(max_k)};
  return {};
}

}  // namespace

std::string chip::fingerprint() const {
  return std::string(kind->arch) + "/" + std::string(kind->driver) + "/blob " + std::to_string(blob_version) +
         "/scratch " + std::to_string(scratch_bytes);
}

refusal examine(const chip& on, const product& of, blocking& blocks) {
  const profile& p = *on.kind;
  if (refusal no = recognise(p, of); no.status != FLYWHEEL_OK) return no;
  product rows = of;
  rows.rows = std::max<std::int64_t>(of.rows, 1);
  const auto best = plan(p, rows, on.scratch_bytes);
  if (!best) {
    const blocking b = smallest_blocking(p, rows);
    return {FLYWHEEL_UNSUPPORTED, "the smallest block, " + std::to_string(b.m) + " x " + std::to_string(b.n) + " x " +
                                      std::to_string(b.k) + ", needs " + std::to_string(lay_out(p, rows, b).bytes) +
                                      " bytes of on-chip memory; there are " + std::to_string(on.scratch_bytes)};
  }
  blocks = *best;
  return {};
}

refusal assemble(const chip& on, std::span<const operation> wanted, std::uint32_t n_inputs, program& out) {
  if (wanted.empty() || wanted.size() > max_ops || n_inputs == 0 || n_inputs > max_inputs)
    return {FLYWHEEL_INVALID_ARGUMENT, "a part has 1 to " + std::to_string(max_ops) + " operations and 1 to " +
                                           std::to_string(max_inputs) + " inputs"};
  if (const char* why = disagreement(wanted, n_inputs)) return {FLYWHEEL_INVALID_ARGUMENT, why};
  out.n_inputs = n_inputs;
  out.ops.assign(wanted.begin(), wanted.end());
  for (operation& op : out.ops) {
    if (op.of.rows < 1) return {FLYWHEEL_INVALID_ARGUMENT, "programs are compiled for a number of rows of at least 1"};
    if (refusal no = examine(on, op.of, op.blocks); no.status != FLYWHEEL_OK) return no;
    op.price = price(*on.kind, op.of, op.blocks);
  }
  return {};
}

std::vector<std::byte> to_blob(const chip& on, const program& what) {
  std::vector<std::byte> out(magic.size());
  std::memcpy(out.data(), magic.data(), magic.size());
  put(out, std::uint64_t{0});  // the length, below
  put(out, blob_version);
  put(out, what.n_inputs);
  put(out, static_cast<std::uint32_t>(what.ops.size()));
  const std::string fingerprint = on.fingerprint();
  put(out, static_cast<std::uint32_t>(fingerprint.size()));
  for (const char c : fingerprint) out.push_back(static_cast<std::byte>(c));
  for (const operation& op : what.ops) {
    for (const std::int64_t number : {op.of.rows, op.of.n, op.of.k, std::int64_t{op.of.bits}, std::int64_t{op.of.group},
                                      std::int64_t{op.input}, op.blocks.m, op.blocks.n, op.blocks.k})
      put(out, static_cast<std::uint32_t>(number));
    put(out, op.price.steps);
  }
  const std::uint64_t length = out.size() + checksum_bytes;
  for (std::size_t i = 0; i < sizeof length; ++i) out[length_at + i] = static_cast<std::byte>(length >> (8 * i) & 0xFF);
  put(out, checksum_of(out));
  return out;
}

refusal from_blob(const chip& on, std::span<const std::byte> blob, program& out) {
  if (blob.size() < head_bytes + checksum_bytes) return corrupt("it ends within its header");
  if (std::memcmp(blob.data(), magic.data(), magic.size()) != 0) return corrupt("this is no blob of a simulated NPU");
  if (get<std::uint64_t>(blob.subspan(length_at)) != blob.size()) return corrupt("its length is not what it says");
  if (get<std::uint64_t>(blob.last(checksum_bytes)) != checksum_of(blob.first(blob.size() - checksum_bytes)))
    return corrupt("its checksum does not match");

  reader r{blob.first(blob.size() - checksum_bytes).subspan(head_bytes)};
  if (const auto version = r.number<std::uint32_t>(); version != blob_version)
    return {FLYWHEEL_INCOMPATIBLE,
            "the blob has version " + std::to_string(version) + "; this is version " + std::to_string(blob_version)};
  out.n_inputs = r.number<std::uint32_t>();
  const auto n_ops = r.number<std::uint32_t>();
  const auto text = r.bytes(r.number<std::uint32_t>());
  if (r.short_of) return corrupt("it ends within its header");
  const std::string fingerprint = on.fingerprint();
  if (!std::equal(text.begin(), text.end(), fingerprint.begin(), fingerprint.end(),
                  [](std::byte b, char c) { return b == static_cast<std::byte>(c); }))
    return {FLYWHEEL_INCOMPATIBLE,
            "the blob was compiled for another device, driver or compiler; this is " + fingerprint};
  if (n_ops == 0 || n_ops > max_ops || out.n_inputs == 0 || out.n_inputs > max_inputs)
    return corrupt(std::to_string(n_ops) + " operations of " + std::to_string(out.n_inputs) + " inputs");

  out.ops.resize(n_ops);
  for (operation& op : out.ops) {
    const auto next = [&] { return std::int64_t{r.number<std::uint32_t>()}; };
    op.of.rows = next();
    op.of.n = next();
    op.of.k = next();
    op.of.bits = static_cast<std::int32_t>(next());
    op.of.group = static_cast<std::int32_t>(next());
    op.input = r.number<std::uint32_t>();
    op.blocks.m = next();
    op.blocks.n = next();
    op.blocks.k = next();
    const auto steps = r.number<std::uint64_t>();
    if (r.short_of) return corrupt("it ends within its operations");
    if (recognise(*on.kind, op.of).status != FLYWHEEL_OK || op.of.rows < 1)
      return corrupt("an operation this device does not have");
    if (!valid(*on.kind, op.of, op.blocks) || lay_out(*on.kind, op.of, op.blocks).bytes > on.scratch_bytes)
      return corrupt("a block that does not fit");
    op.price = price(*on.kind, op.of, op.blocks);
    if (op.price.steps != steps) return corrupt("another number of steps than its blocks make");
  }
  if (!r.rest.empty()) return corrupt("bytes behind its last operation");
  if (const char* why = disagreement(out.ops, out.n_inputs)) return corrupt(why);
  return {};
}

}  // namespace flywheel::inline v0::device::simulation
