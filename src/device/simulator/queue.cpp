// Submissions: from submit() over a worker to wait().
#include <algorithm>
#include <cstring>

#include "src/core/float_control.hpp"
#include "src/device/simulator/npu.hpp"

namespace flywheel::inline v0::device::simulation {
namespace {

// A fence is a slot and how often that slot has been taken.
constexpr unsigned slot_bits = 8;

std::uint64_t bytes_of(std::int64_t rows, std::int64_t cols, std::size_t element) noexcept {
  return static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(cols) * element;
}

std::uint64_t result_bytes(const product& of) noexcept { return bytes_of(of.rows, of.n, sizeof(float)); }
std::uint64_t input_bytes(const product& of) noexcept { return bytes_of(of.rows, of.k, 1); }
std::uint64_t scale_bytes(const product& of) noexcept { return bytes_of(of.rows, of.groups(), sizeof(float)); }

}  // namespace

/// Null: it was waited for, or never given; `known` tells which.
npu::slot* npu::find_fence(flywheel_fence fence, bool& known) noexcept {
  const std::uint64_t number = fence & ((1U << slot_bits) - 1), generation = fence >> slot_bits;
  known = false;
  if (number == 0 || number > slots().size()) return nullptr;
  slot& s = slots_[number - 1];
  known = generation > 0 && generation <= s.generation;
  return known && generation == s.generation && s.state != phase::vacant ? &s : nullptr;
}

flywheel_status npu::bind(slot& s, const flywheel_region& where, std::uint64_t bytes, const char* what,
                          std::uint32_t index, std::byte** out) {
  const auto bad = [&](std::string why) {
    return fail(FLYWHEEL_INVALID_ARGUMENT,
                "submit: " + std::string(what) + " " + std::to_string(index) + ": " + std::move(why));
  };
  memory_block* const block = find(where.buffer);
  if (!block) return bad("no buffer of this device, or released before");
  if (block->mapped || block->moving) return bad("its buffer is mapped");
  if (where.offset % chip_.kind->alignment != 0)
    return bad("offset " + std::to_string(where.offset) + " is no multiple of " +
               std::to_string(chip_.kind->alignment));
  if (where.offset > block->bytes || bytes > block->bytes - where.offset)
    return bad("bytes " + std::to_string(where.offset) + " to " + std::to_string(where.offset + bytes) +
               " of a buffer of " + std::to_string(block->bytes));
  s.used[s.n_used++] = block;
  *out = block->data + where.offset;
  return FLYWHEEL_OK;
}

flywheel_status npu::bind_all(slot& s, const program& what, const flywheel_bindings& b) {
  s.n_used = 0;
  s.codes.fill(nullptr);
  for (std::uint32_t i = 0; i < what.ops.size(); ++i) {
    const product& of = what.ops[i].of;
    const std::uint32_t input = what.ops[i].input;
    std::byte* at = nullptr;
    flywheel_status status = FLYWHEEL_OK;
    if (!s.codes[input]) {
      status = bind(s, b.inputs[input].codes, input_bytes(of), "codes of input", input, &at);
      if (status != FLYWHEEL_OK) return status;
      s.codes[input] = at;
      status = bind(s, b.inputs[input].scales, scale_bytes(of), "scales of input", input, &at);
      if (status != FLYWHEEL_OK) return status;
      s.scales[input] = at;
    }
    status = bind(s, b.weights[i], packed_bytes(*chip_.kind, of), "weights of operation", i, &at);
    if (status != FLYWHEEL_OK) return status;
    s.weights[i] = at;
    status = bind(s, b.outputs[i], result_bytes(of), "output of operation", i, &s.outputs[i]);
    if (status != FLYWHEEL_OK) return status;
  }
  return FLYWHEEL_OK;
}

/// Nothing that is read or written elsewhere may be written to: operations run in any order.
flywheel_status npu::check_overlaps(const slot& s, const program& what) {
  const auto apart = [](const std::byte* a, std::uint64_t a_bytes, const std::byte* b, std::uint64_t b_bytes) {
    return a + a_bytes <= b || b + b_bytes <= a;
  };
  for (std::size_t i = 0; i < what.ops.size(); ++i) {
    const std::byte* const out = s.outputs[i];
    const std::uint64_t bytes = result_bytes(what.ops[i].of);
    for (std::size_t j = 0; j < what.ops.size(); ++j) {
      const operation& op = what.ops[j];
      if (apart(out, bytes, s.codes[op.input], input_bytes(op.of)) &&
          apart(out, bytes, s.scales[op.input], scale_bytes(op.of)) &&
          apart(out, bytes, s.weights[j], packed_bytes(*chip_.kind, op.of)) &&
          (i == j || apart(out, bytes, s.outputs[j], result_bytes(op.of))))
        continue;
      return fail(FLYWHEEL_INVALID_ARGUMENT, "submit: output " + std::to_string(i) + " overlaps what operation " +
                                                 std::to_string(j) + " reads or writes");
    }
  }
  return FLYWHEEL_OK;
}

flywheel_status npu::submit(flywheel_executable* executable, const flywheel_bindings* b, const flywheel_fence* waits,
                            std::uint32_t n_waits, flywheel_fence* out) {
  unique_lock lock(mutex_);
  if (lost_) return fail(FLYWHEEL_DEVICE_LOST, "submit: the device is lost");
  loaded* const what = find(executable);
  if (!what) return fail(FLYWHEEL_INVALID_ARGUMENT, "submit: no executable of this device, or unloaded before");
  if (!out || !b || b->size < sizeof *b || !b->inputs || !b->weights || !b->outputs || (n_waits > 0 && !waits))
    return fail(FLYWHEEL_INVALID_ARGUMENT, "submit: a null argument, or no size in the bindings");
  if (b->n_inputs != what->what.n_inputs || b->n_ops != what->what.ops.size())
    return fail(FLYWHEEL_INVALID_ARGUMENT, "submit: the program has " + std::to_string(what->what.n_inputs) +
                                               " inputs and " + std::to_string(what->what.ops.size()) +
                                               " operations, the bindings have " + std::to_string(b->n_inputs) +
                                               " and " + std::to_string(b->n_ops));
  std::uint64_t after = 0;  // slots
  for (std::uint32_t i = 0; i < n_waits; ++i) {
    bool known = false;
    const slot* const s = find_fence(waits[i], known);
    if (waits[i] != 0 && !known)
      return fail(FLYWHEEL_INVALID_ARGUMENT, "submit: fence " + std::to_string(i) + " is none of this device");
    if (s && s->state != phase::ended) after |= std::uint64_t{1} << (s - slots_.data());
  }
  const auto free =
      std::find_if(slots().begin(), slots().end(), [](const slot& s) { return s.state == phase::vacant; });
  if (free == slots().end())
    return fail(FLYWHEEL_FAILED, "submit: " + std::to_string(slots().size()) +
                                     " submissions are in flight, or have ended without being waited for");
  slot& s = *free;
  if (const flywheel_status status = bind_all(s, what->what, *b); status != FLYWHEEL_OK) return status;
  if (const flywheel_status status = check_overlaps(s, what->what); status != FLYWHEEL_OK) return status;
  if (faults_.strikes(fault::out_of_memory)) return fail(FLYWHEEL_OUT_OF_MEMORY, "submit: injected fault");

  const bool hangs = faults_.strikes(fault::timeout), fails = faults_.strikes(fault::failed),
             loses = faults_.strikes(fault::device_lost);
  enter();
  s.state = hangs ? phase::stuck : phase::waiting;
  s.what_happens = loses ? fate::loses_device : fails ? fate::fails : fate::runs;
  s.ran = s.abandoned = s.spoiled = false;
  ++s.generation;
  s.program = what;
  s.waits = after;
  s.delay = std::chrono::microseconds(options_.delay_us == 0 ? 0 : delays_() % (options_.delay_us + 1));
  ++what->uses;
  for (std::uint32_t i = 0; i < s.n_used; ++i) ++s.used[i]->uses;
  ++report_.submissions;
  place(s, after);
  *out = s.generation << slot_bits | static_cast<std::uint64_t>(&s - slots_.data() + 1);
  work_.notify_all();
#if !FLYWHEEL_HAS_THREADS
  while (work(lock, units_[0])) {
  }
#endif
  leave();
  return FLYWHEEL_OK;
}

/// Gives a submission its place in simulated time.
void npu::place(slot& s, std::uint64_t waits) noexcept {
  const profile& p = *chip_.kind;
  std::uint64_t ready = device_time_.host, trace_ready = trace_time_.host;
  for (const slot& other : slots()) {
    if ((waits >> (&other - slots_.data()) & 1U) == 0) continue;
    ready = std::max(ready, other.end);
    trace_ready = std::max(trace_ready, other.trace_end);
  }
  if (s.state == phase::stuck) {  // takes no time: it never starts
    s.end = ready;
    s.trace_end = trace_ready;
    return;
  }
  using kind = trace_event::kind;
  s.end = device_time_.place(p, s.program->what, ready, [](auto&&...) {});
  s.trace_end = trace_time_.place(
      p, s.program->what, trace_ready,
      [&](std::uint32_t queue, const operation& op, std::uint64_t begin, std::uint64_t launch) {
        trace_event e{.queue = queue, .submission = report_.submissions};
        if (launch > 0) {
          e.what = kind::launch;
          e.begin = begin - launch;
          e.cycles = launch;
          trace_.add(e);
        }
        e = {kind::matmul,     queue, report_.submissions,        begin, op.price.cycles, op.of,
             op.price.compute, 0,     op.price.tile_multiply_adds};
        trace_.add(e);
        e = {kind::transfer, queue, report_.submissions, begin, op.price.dma, op.of, 0, op.price.dma_bytes, 0};
        trace_.add(e);
      });
}

flywheel_status npu::wait(flywheel_fence fence, std::uint64_t nanoseconds) {
  unique_lock lock(mutex_);
  enter();
  bool known = false;
  slot* const s = find_fence(fence, known);
  if (!s) {
    leave();
    return fail(FLYWHEEL_INVALID_ARGUMENT,
                known ? "wait: this fence has been waited for" : "wait: no fence of this device");
  }
  const std::uint64_t generation = s->generation;
  const auto over = [&] {
    return s->generation != generation || s->state == phase::ended || s->state == phase::vacant;
  };
#if FLYWHEEL_HAS_THREADS
  // Beyond a year it is for ever, which a deadline cannot say.
  constexpr std::uint64_t year = 365ULL * 24 * 3600 * 1'000'000'000;
  const auto deadline = steady::now() + std::chrono::nanoseconds(std::min(nanoseconds, year));
  const bool ended = ended_.wait_until(lock, deadline, over);
#else
  (void)nanoseconds;  // nothing can end it while the only thread waits
  const bool ended = over();
#endif
  if (ended && (s->generation != generation || s->state == phase::vacant)) {
    leave();
    return fail(FLYWHEEL_INVALID_ARGUMENT, "wait: another thread has waited for this fence");
  }
  if (!ended) {
    leave();
    return fail(FLYWHEEL_TIMEOUT, "wait: the submission has not ended");
  }
  device_time_.host = std::max(device_time_.host, s->end);
  trace_time_.host = std::max(trace_time_.host, s->trace_end);
  const flywheel_status outcome = lost_ ? FLYWHEEL_DEVICE_LOST : s->outcome;
  vacate(*s);
  leave();
  if (outcome == FLYWHEEL_OK) return FLYWHEEL_OK;
  return fail(outcome, outcome == FLYWHEEL_DEVICE_LOST ? "wait: the device is lost" : "wait: the submission failed");
}

void npu::enter() noexcept {
  if (entered_) {
    const std::chrono::duration<double> away = steady::now() - left_;
    const auto cycles = static_cast<std::uint64_t>(away.count() * chip_.kind->clock_hz);
    if (cycles > 0) trace_.add({.what = trace_event::kind::host, .begin = trace_time_.host, .cycles = cycles});
    trace_time_.host += cycles;
  }
}

void npu::leave() noexcept {
  left_ = steady::now();
  entered_ = true;
}

/// Does one thing that can be done now. False: there is none.
bool npu::work(unique_lock& lock, matrix_unit& unit) {
  std::array<slot*, max_submissions> ready;
  std::size_t n = 0;
  for (slot& s : slots()) {
    if (s.state == phase::finishing && (!FLYWHEEL_HAS_THREADS || s.due <= steady::now())) {
      finish(s, s.what_happens == fate::fails ? FLYWHEEL_FAILED : FLYWHEEL_OK);
      return true;
    }
    if (s.state == phase::waiting && s.waits == 0) ready[n++] = &s;
  }
  if (n == 0) return false;
  run(lock, unit, *ready[order_() % n]);
  return true;
}

void npu::run(unique_lock& lock, matrix_unit& unit, slot& s) {
  if (s.what_happens == fate::loses_device) {
    end_everything();
    return;
  }
  s.state = phase::running;
  lock.unlock();
  if (s.what_happens == fate::fails) {  // what it leaves behind is not to be used
    for (std::size_t i = 0; i < s.program->what.ops.size(); ++i)
      std::memset(s.outputs[i], std::to_integer<int>(poison), result_bytes(s.program->what.ops[i].of));
  } else {
    compute(unit, s);
  }
  lock.lock();
  s.ran = true;
  s.state = phase::finishing;
  s.due = steady::now() + s.delay;
  if (lost_ || s.spoiled) finish(s, lost_ ? FLYWHEEL_DEVICE_LOST : FLYWHEEL_FAILED);
  ended_.notify_all();  // release() may wait for it to stop running
}

void npu::compute(matrix_unit& unit, const slot& s) noexcept {
  // The device's rounding is its own, whatever thread opened it or submits.
  const float_control before = get_float_control();
  set_float_control(default_float_control);
  const program& what = s.program->what;
  for (std::size_t i = 0; i < what.ops.size(); ++i) {
    const operation& op = what.ops[i];
    unit.multiply(op.of, op.blocks, s.codes[op.input], s.scales[op.input], s.weights[i], s.outputs[i]);
  }
  set_float_control(before);
}

/// The end of a submission, once.
void npu::finish(slot& s, flywheel_status outcome) noexcept {
  s.state = phase::ended;
  s.outcome = outcome;
  if (s.ran) {
    report_.cycles = std::max(report_.cycles, s.end);
    report_.launch_cycles += chip_.kind->launch_cycles();
    for (const operation& op : s.program->what.ops) {
      report_.compute_cycles += op.price.compute;
      report_.dma_cycles += op.price.dma;
      report_.multiply_adds += op.price.multiply_adds;
      report_.tile_multiply_adds += op.price.tile_multiply_adds;
    }
  }
  drop_use(s.program);
  for (std::uint32_t i = 0; i < s.n_used; ++i) drop_use(s.used[i]);
  s.program = nullptr;
  s.n_used = 0;
  for (slot& other : slots()) other.waits &= ~(std::uint64_t{1} << (&s - slots_.data()));
  if (s.abandoned) vacate(s);
  ended_.notify_all();
  work_.notify_all();
}

void npu::vacate(slot& s) noexcept { s.state = phase::vacant; }

void npu::end_everything() noexcept {
  lost_ = true;
  for (slot& s : slots())
    if (s.state == phase::waiting || s.state == phase::stuck || s.state == phase::finishing)
      finish(s, FLYWHEEL_DEVICE_LOST);
}

void npu::worker(matrix_unit& unit) {
#if FLYWHEEL_HAS_THREADS
  unique_lock lock(mutex_);
  while (!stopping_) {
    if (work(lock, unit)) continue;
    auto due = steady::time_point::max();
    for (const slot& s : slots())
      if (s.state == phase::finishing) due = std::min(due, s.due);
    if (due == steady::time_point::max())
      work_.wait(lock);
    else
      work_.wait_until(lock, due);
  }
#else
  (void)unit;
#endif
}

}  // namespace flywheel::inline v0::device::simulation
