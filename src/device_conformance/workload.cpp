#include "device_conformance/workload.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

namespace flywheel::kit {
namespace {

constexpr std::byte guard_byte{0xA5};
constexpr std::byte unwritten{0xC7};  // outputs begin with it: -102286.555 as f32, which no product here gives

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> out(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(out.data(), values.data(), out.size());
  return out;
}

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

/// Floats as integers in their order, so that neighbours differ by one.
std::int64_t ordered(float value) {
  const auto bits = std::bit_cast<std::int32_t>(value);
  return bits < 0 ? std::int64_t{std::numeric_limits<std::int32_t>::min()} - bits : bits;
}

std::string exact_text(float value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.9g (bits %08x)", static_cast<double>(value), std::bit_cast<unsigned>(value));
  return text;
}

std::string distance_text(float got, float expected) {
  if (std::isnan(got) || std::isnan(expected)) return "NaN on one side only";
  if (got == expected) return "another sign of zero";
  if (std::isinf(got) || std::isinf(expected)) return "infinite on one side only";
  const std::int64_t units = std::abs(ordered(got) - ordered(expected));
  return units == 1 ? "off by one in the last place" : "off by " + std::to_string(units) + " units in the last place";
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

}  // namespace

std::int64_t group_of(const flywheel_matmul& op) noexcept { return op.weights.group == 0 ? op.k : op.weights.group; }
std::int64_t groups_of(const flywheel_matmul& op) noexcept { return (op.k + group_of(op) - 1) / group_of(op); }

std::string describe(const flywheel_weight_format& format) {
  return std::to_string(format.bits) + "-bit weights with a scale per " +
         (format.group == 0 ? "row" : std::to_string(format.group));
}
std::string describe(const flywheel_matmul& op) {
  return "matmul of " + (op.rows == 0 ? "any" : std::to_string(op.rows)) + " rows, n " + std::to_string(op.n) + ", k " +
         std::to_string(op.k) + ", " + describe(op.weights);
}

flywheel_matmul make_op(std::int64_t rows, std::int64_t n, std::int64_t k, const flywheel_weight_format& format,
                        std::uint32_t input) {
  flywheel_matmul op = {};
  op.size = sizeof op;
  op.kind = FLYWHEEL_OP_MATMUL;
  op.rows = rows;
  op.n = n;
  op.k = k;
  op.weights = format;
  op.input = input;
  return op;
}

quantized fill(std::int64_t rows, std::int64_t k, std::int64_t group, int bits, filling how, std::mt19937_64& random) {
  const int low = bits == 8 ? -127 : -8, high = bits == 8 ? 127 : 7;
  const std::int64_t groups = (k + group - 1) / group;
  quantized out;
  out.codes.resize(static_cast<std::size_t>(rows * k));
  out.scales.resize(static_cast<std::size_t>(rows * groups));
  const auto uniform = [&](double from, double to) {
    return from + (to - from) * (static_cast<double>(random() >> 11) * 0x1p-53);
  };
  const auto span = static_cast<std::uint64_t>(high - low + 1);
  for (std::size_t i = 0; i < out.codes.size(); ++i) {
    const std::uint64_t draw = random() >> 16;
    int code = low + static_cast<int>(draw % span);
    if (how == filling::extreme) {
      const std::int64_t row = static_cast<std::int64_t>(i) / k;
      code = row % 3 == 0 ? high : row % 3 == 1 ? low : draw % 2 == 0 ? low : high;
    }
    out.codes[i] = static_cast<std::int8_t>(code);
  }
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const float odd_ones[] = {0.0F,      -0.0F,     std::numeric_limits<float>::quiet_NaN(),
                            infinity,  -infinity, 1e-40F,
                            -1.5e-42F, 3e38F,     1.17549435e-38F,
                            -0.25F};
  for (float& scale : out.scales) {
    // Every bit of the significand is used: rounding shows.
    scale = static_cast<float>(std::exp2(uniform(-12, 2)) * (how != filling::random && random() % 4 == 0 ? -1 : 1));
    if (how == filling::special && random() % 2 == 0) scale = odd_ones[random() % std::size(odd_ones)];
  }
  return out;
}

std::vector<float> reference(const flywheel_matmul& op, const quantized& x, const quantized& w) {
  const std::int64_t group = group_of(op), groups = groups_of(op);
  std::vector<float> y(static_cast<std::size_t>(op.rows * op.n));
  for (std::int64_t r = 0; r < op.rows; ++r)
    for (std::int64_t c = 0; c < op.n; ++c) {
      float sum = 0;
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t first = g * group, last = std::min(op.k, first + group);
        const std::int8_t* xs = x.codes.data() + r * op.k;
        const std::int8_t* ws = w.codes.data() + c * op.k;
        std::int32_t exact = 0;
        for (std::int64_t i = first; i < last; ++i) exact += std::int32_t{xs[i]} * ws[i];
        const float scaled = static_cast<float>(exact) * w.scales[static_cast<std::size_t>(c * groups + g)];
        const float term = scaled * x.scales[static_cast<std::size_t>(r * groups + g)];
        sum = g == 0 ? term : sum + term;
      }
      y[static_cast<std::size_t>(r * op.n + c)] = sum;
    }
  return y;
}

workload make_workload(std::vector<flywheel_matmul> ops, filling how, std::mt19937_64& random) {
  workload out;
  for (const flywheel_matmul& op : ops) {
    if (out.inputs.size() <= op.input) out.inputs.resize(op.input + 1);
    if (out.inputs[op.input].codes.empty()) out.inputs[op.input] = fill(op.rows, op.k, group_of(op), 8, how, random);
    out.weights.push_back(fill(op.n, op.k, group_of(op), op.weights.bits, how, random));
  }
  out.ops = std::move(ops);
  return out;
}

bound_workload::bound_workload(probe& device, workload work, placing where, std::shared_ptr<const program> loaded)
    : device_(device),
      work_(std::move(work)),
      program_(std::move(loaded)),
      guard_(round_up(256, device.caps().alignment)) {
  if (!program_)
    program_ = std::make_shared<const program>(
        device, device.compile(work_.ops, static_cast<std::uint32_t>(work_.inputs.size())));
  for (std::size_t i = 0; i < work_.inputs.size(); ++i) {
    codes_.push_back(add("the codes of input " + std::to_string(i), bytes_of(work_.inputs[i].codes), false));
    scales_.push_back(add("the scales of input " + std::to_string(i), bytes_of(work_.inputs[i].scales), false));
  }
  for (std::size_t i = 0; i < work_.ops.size(); ++i) {
    const flywheel_matmul& op = work_.ops[i];
    std::uint64_t bytes = 0;
    device.require(device.packed_size(op, bytes), "packed_size of a " + describe(op));
    std::vector<std::byte> packed(bytes + 65536);  // what pack writes beyond is another check's finding
    device.require(device.pack(op, work_.weights[i].codes.data(), work_.weights[i].scales.data(), packed.data()),
                   "pack of a " + describe(op));
    packed.resize(bytes);
    weights_.push_back(add("the weights of operation " + std::to_string(i), std::move(packed), false));
    outputs_.push_back(add("the output of operation " + std::to_string(i),
                           std::vector<std::byte>(static_cast<std::size_t>(op.rows * op.n) * sizeof(float), unwritten),
                           true));
    expected_.push_back(reference(op, work_.inputs[op.input], work_.weights[i]));
  }
  place(where);
  write();
  for (std::size_t i = 0; i < work_.inputs.size(); ++i)
    bound_inputs_.push_back({region(codes_[i]), region(scales_[i])});
  bound_weights_ = regions_of(weights_);
  bound_outputs_ = regions_of(outputs_);
}

std::size_t bound_workload::add(std::string name, std::vector<std::byte> data, bool is_output) {
  operand o;
  o.name = std::move(name);
  o.data = std::move(data);
  o.is_output = is_output;
  operands_.push_back(std::move(o));
  return operands_.size() - 1;
}

void bound_workload::place(placing where) {
  std::uint64_t end = guard_;
  for (operand& o : operands_) {
    if (where == placing::apart) end = guard_;
    o.offset = end;
    o.buffer = where == placing::apart ? buffer_bytes_.size() : 0;
    end = round_up(end + o.data.size(), device_.caps().alignment) + guard_;
    if (o.buffer == buffer_bytes_.size()) buffer_bytes_.push_back(0);
    buffer_bytes_[o.buffer] = end;
  }
  buffers_.reserve(buffer_bytes_.size());
  for (const std::uint64_t bytes : buffer_bytes_) buffers_.emplace_back(device_, bytes);
}

void bound_workload::write() {
  for (std::size_t b = 0; b < buffers_.size(); ++b) {
    std::byte* base = buffers_[b].map();
    std::fill_n(base, buffer_bytes_[b], guard_byte);
    for (const operand& o : operands_)
      if (o.buffer == b) std::copy(o.data.begin(), o.data.end(), base + o.offset);
    buffers_[b].unmap();
  }
}

flywheel_region bound_workload::region(std::size_t operand) const {
  return {buffers_[operands_[operand].buffer].get(), operands_[operand].offset};
}

std::vector<flywheel_region> bound_workload::regions_of(const std::vector<std::size_t>& which) const {
  std::vector<flywheel_region> out;
  for (const std::size_t i : which) out.push_back(region(i));
  return out;
}

void bound_workload::take_scales_from(std::size_t i, flywheel_region region, std::vector<float> values) {
  bound_inputs_[i].scales = region;
  work_.inputs[i].scales = std::move(values);
  for (std::size_t op = 0; op < work_.ops.size(); ++op)
    if (work_.ops[op].input == i) expected_[op] = reference(work_.ops[op], work_.inputs[i], work_.weights[op]);
}

flywheel_fence bound_workload::submit(std::span<const flywheel_fence> waits) {
  const flywheel_bindings bindings = {sizeof bindings,
                                      static_cast<std::uint32_t>(bound_inputs_.size()),
                                      static_cast<std::uint32_t>(work_.ops.size()),
                                      bound_inputs_.data(),
                                      bound_weights_.data(),
                                      bound_outputs_.data()};
  return device_.submit(program_->get(), bindings, waits);
}

void bound_workload::run() {
  device_.wait(submit());
  check();
}

std::string bound_workload::which_op(std::size_t op) const {
  const std::string name = "a " + describe(work_.ops[op]);
  return work_.ops.size() == 1
             ? name
             : "operation " + std::to_string(op) + " of " + std::to_string(work_.ops.size()) + ", " + name;
}

void bound_workload::check_guards(const operand& o, const std::byte* base) const {
  const auto touched = [](const std::byte* first, const std::byte* last) {
    return std::count_if(first, last, [](std::byte b) { return b != guard_byte; });
  };
  const std::byte* data = base + o.offset;
  const std::byte* end = data + o.data.size();
  const std::string kind = o.is_output ? "output overrun: " : "stray write: ";
  if (const auto n = touched(end, end + guard_); n > 0)
    throw finding(kind + "wrote " + std::to_string(n) + " bytes beyond " + o.name + ", in " + which_op(0));
  if (const auto n = touched(data - guard_, data); n > 0)
    throw finding(kind + "wrote " + std::to_string(n) + " bytes before " + o.name + ", in " + which_op(0));
}

void bound_workload::check() {
  for (std::size_t b = 0; b < buffers_.size(); ++b) {
    const std::byte* base = buffers_[b].map(FLYWHEEL_MAP_READ);
    for (const operand& o : operands_) {
      if (o.buffer != b) continue;
      check_guards(o, base);
      if (o.is_output || std::equal(o.data.begin(), o.data.end(), base + o.offset)) continue;
      const auto at = std::mismatch(o.data.begin(), o.data.end(), base + o.offset).first - o.data.begin();
      throw finding("the device changed " + o.name + ", from byte " + std::to_string(at) + " of " +
                    std::to_string(o.data.size()) + " on: a program reads its inputs and weights only");
    }
    for (std::size_t op = 0; op < outputs_.size(); ++op)
      if (operands_[outputs_[op]].buffer == b) compare(op, base + operands_[outputs_[op]].offset);
    buffers_[b].unmap();
  }
}

void bound_workload::compare(std::size_t op, const std::byte* got) const {
  const std::vector<float>& expected = expected_[op];
  std::vector<float> values(expected.size());
  std::memcpy(values.data(), got, values.size() * sizeof(float));
  std::size_t wrong = 0, first = 0, untouched = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (same(values[i], expected[i])) continue;
    if (wrong++ == 0) first = i;
    untouched += std::bit_cast<std::uint32_t>(values[i]) == 0xC7C7C7C7U;
  }
  if (wrong == 0) return;
  const auto n = static_cast<std::size_t>(work_.ops[op].n);
  const std::string count = std::to_string(wrong) + " of " + std::to_string(values.size()) + " results are wrong in " +
                            which_op(op) + "; first: row " + std::to_string(first / n) + ", column " +
                            std::to_string(first % n);
  if (untouched == wrong) throw finding(count + ", which was never written");
  throw finding(count + ", expected " + exact_text(expected[first]) + ", got " + exact_text(values[first]) + ": " +
                distance_text(values[first], expected[first]));
}

}  // namespace flywheel::kit
