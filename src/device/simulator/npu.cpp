#include "src/device/simulator/npu.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device::simulation {
namespace {

template <std::size_t N>
void copy_text(char (&out)[N], std::string_view text) noexcept {
  const std::size_t n = std::min(text.size(), N - 1);
  std::memcpy(out, text.data(), n);
  out[n] = 0;
}

/// Writes as much of a struct as its owner has room for. False: not even for its size.
template <class T>
bool hand_out(T filled, T* out) noexcept {
  if (!out || out->size < sizeof out->size) return false;
  filled.size = out->size;
  std::memcpy(out, &filled, std::min<std::size_t>(out->size, sizeof filled));
  return true;
}

/// A struct of this ABI, or of a later one, whose end is not known here.
template <class T>
bool whole(const T* in) noexcept {
  return in && in->size >= sizeof(T);
}

product product_of(const flywheel_matmul& op) noexcept {
  return {op.rows, op.n, op.k, op.weights.bits, op.weights.group};
}

}  // namespace

template <class F>
void npu::give_up(F&& which) noexcept {
  for (slot& s : slots()) {
    if (s.state == phase::vacant || s.state == phase::ended || !which(s)) continue;
    if (s.state == phase::running)
      s.spoiled = true;
    else
      finish(s, lost_ ? FLYWHEEL_DEVICE_LOST : FLYWHEEL_FAILED);
  }
}

npu::npu(const profile& p, const npu_options& options)
    : chip_{&p, options.scratch != 0 ? options.scratch : p.scratch_bytes},
      options_(options),
      next_handle_(reinterpret_cast<std::uintptr_t>(this) << 8),  // other devices' handles are unknown here
      faults_(options),
      delays_(options.seed),
      order_(options.seed) {
  report_.clock_hz = p.clock_hz;
}

result<void> npu::start() {
  const std::uint32_t queues = FLYWHEEL_HAS_THREADS ? chip_.kind->queues : 1;
  units_.reserve(queues);
  for (std::uint32_t i = 0; i < queues; ++i) {
    FLYWHEEL_TRY(auto unit, matrix_unit::create(*chip_.kind, chip_.scratch_bytes));
    units_.push_back(std::move(unit));
  }
#if FLYWHEEL_HAS_THREADS
  workers_.reserve(queues);
  for (matrix_unit& unit : units_) workers_.emplace_back([this, &unit] { worker(unit); });
#endif
  return {};
}

npu::~npu() {
#if FLYWHEEL_HAS_THREADS
  {
    const unique_lock lock(mutex_);
    stopping_ = true;
    work_.notify_all();
  }
  for (std::thread& t : workers_) t.join();
#endif
}

void npu::open() {
  const unique_lock lock(mutex_);
  users_ = shared_from_this();
  ++open_;
}

void npu::close() {
  std::shared_ptr<npu> last;  // ends behind the lock, and with it perhaps the device
  const unique_lock lock(mutex_);
  if (open_ == 0 || --open_ > 0) return;
  last = std::move(users_);
  for (slot& s : slots()) s.abandoned = true;
  give_up([](const slot&) { return true; });
  for (slot& s : slots())
    if (s.state == phase::ended) vacate(s);
}

void npu::lose() {
  const unique_lock lock(mutex_);
  end_everything();
}

flywheel_status npu::caps(flywheel_device_caps* out) {
  const profile& p = *chip_.kind;
  flywheel_device_caps c{};
  c.abi = FLYWHEEL_DEVICE_ABI;
  copy_text(c.name, p.name);
  copy_text(c.vendor, p.vendor);
  copy_text(c.arch, p.arch);
  copy_text(c.driver, p.driver);
  c.tile_m = p.tile_m;
  c.tile_n = p.tile_n;
  c.tile_k = p.tile_k;
  c.alignment = p.alignment;
  c.scratch_bytes = chip_.scratch_bytes;
  c.memory_bytes = p.memory_bytes;
  c.max_buffer_bytes = p.max_buffer_bytes;
  c.queues = p.queues;
  c.max_in_flight = p.max_in_flight;
  c.static_shapes = 1;
  c.unified_memory = p.unified_memory;
  c.multiply_adds_per_second = p.clock_hz * p.multiply_adds_per_cycle * p.queues;
  c.bytes_per_second = p.clock_hz * p.dma_bytes_per_cycle;
  c.launch_seconds = p.launch_seconds;
  c.n_weight_formats = static_cast<std::uint32_t>(p.formats.size());
  std::copy(p.formats.begin(), p.formats.end(), c.weight_formats);
  return hand_out(c, out) ? FLYWHEEL_OK : fail(FLYWHEEL_INVALID_ARGUMENT, "caps: no struct, or its size is not set");
}

flywheel_status npu::fingerprint(char* out, std::uint32_t room) {
  const std::string text = chip_.fingerprint();
  if (!out || room <= text.size())
    return fail(FLYWHEEL_INVALID_ARGUMENT,
                "fingerprint: needs room for " + std::to_string(text.size() + 1) + " characters");
  std::memcpy(out, text.c_str(), text.size() + 1);
  return FLYWHEEL_OK;
}

flywheel_status npu::query(const flywheel_matmul* op, flywheel_support* out) {
  if (!whole(op)) return fail(FLYWHEEL_INVALID_ARGUMENT, "query: no operation, or its size is not set");
  flywheel_support answer{};
  refusal no{FLYWHEEL_UNSUPPORTED, "this device has matrix products only"};
  if (op->kind == FLYWHEEL_OP_MATMUL) {
    product of = product_of(*op);
    blocking blocks;
    no = examine(chip_, of, blocks);
    if (no.status == FLYWHEEL_OK) {
      of.rows = std::max<std::int64_t>(of.rows, 1);
      answer.ok = 1;
      answer.scratch_bytes = lay_out(*chip_.kind, of, blocks).bytes;
      answer.seconds = static_cast<double>(chip_.kind->launch_cycles() + price(*chip_.kind, of, blocks).cycles) /
                       chip_.kind->clock_hz;
    }
  }
  copy_text(answer.reason, no.reason);
  if (!hand_out(answer, out)) return fail(FLYWHEEL_INVALID_ARGUMENT, "query: no answer, or its size is not set");
  // That a product cannot be computed is an answer, not a failure.
  if (no.status == FLYWHEEL_OK || (no.status == FLYWHEEL_UNSUPPORTED && op->kind == FLYWHEEL_OP_MATMUL))
    return FLYWHEEL_OK;
  return fail(no.status, "query: " + no.reason);
}

flywheel_status npu::packed_size(const flywheel_matmul* op, std::uint64_t* out) {
  if (!whole(op) || !out)
    return fail(FLYWHEEL_INVALID_ARGUMENT, "weights: a null argument, or no size in the operation");
  if (op->kind != FLYWHEEL_OP_MATMUL)
    return fail(FLYWHEEL_UNSUPPORTED, "weights: this device has matrix products only");
  product of = product_of(*op);
  of.rows = 1;  // means nothing here
  blocking blocks;
  if (const refusal no = examine(chip_, of, blocks); no.status != FLYWHEEL_OK)
    return fail(no.status, "weights: " + no.reason);
  *out = packed_bytes(*chip_.kind, of);
  return FLYWHEEL_OK;
}

flywheel_status npu::pack(const flywheel_matmul* op, const std::int8_t* codes, const float* scales, void* out) {
  std::uint64_t bytes = 0;
  if (const flywheel_status status = packed_size(op, &bytes); status != FLYWHEEL_OK) return status;
  if (!codes || !scales || !out) return fail(FLYWHEEL_INVALID_ARGUMENT, "pack: a null argument");
  if (!pack_weights(*chip_.kind, product_of(*op), codes, scales, static_cast<std::byte*>(out)))
    return fail(FLYWHEEL_INVALID_ARGUMENT, op->weights.bits == 8 ? "pack: codes of 8 bits are from -127 to 127"
                                                                 : "pack: codes of 4 bits are from -8 to 7");
  return FLYWHEEL_OK;
}

flywheel_status npu::unpack(const flywheel_matmul* op, const void* packed, std::int8_t* codes, float* scales) {
  std::uint64_t bytes = 0;
  if (const flywheel_status status = packed_size(op, &bytes); status != FLYWHEEL_OK) return status;
  if (!codes || !scales || !packed) return fail(FLYWHEEL_INVALID_ARGUMENT, "unpack: a null argument");
  unpack_weights(*chip_.kind, product_of(*op), static_cast<const std::byte*>(packed), codes, scales);
  return FLYWHEEL_OK;
}

flywheel_status npu::compile(const flywheel_part* part, const flywheel_sink* blob) {
  if (!whole(part) || !part->ops || !blob || !blob->write)
    return fail(FLYWHEEL_INVALID_ARGUMENT, "compile: a null argument, or no size in the part");
  if (part->n_ops > max_ops)
    return fail(FLYWHEEL_INVALID_ARGUMENT, "compile: a part has at most " + std::to_string(max_ops) + " operations");
  std::vector<operation> wanted(part->n_ops);
  const std::size_t stride = part->ops[0].size;  // of a later ABI's operations
  for (std::uint32_t i = 0; i < part->n_ops; ++i) {
    const auto* const op =
        reinterpret_cast<const flywheel_matmul*>(reinterpret_cast<const std::byte*>(part->ops) + i * stride);
    if (!whole(op) || op->size != stride)
      return fail(FLYWHEEL_INVALID_ARGUMENT, "compile: the sizes of the operations are not set alike");
    if (op->kind != FLYWHEEL_OP_MATMUL)
      return fail(FLYWHEEL_UNSUPPORTED, "compile: this device has matrix products only");
    wanted[i].of = product_of(*op);
    wanted[i].input = op->input;
  }
  program what;
  if (const refusal no = assemble(chip_, wanted, part->n_inputs, what); no.status != FLYWHEEL_OK)
    return fail(no.status, "compile: " + no.reason);
  const std::vector<std::byte> bytes = to_blob(chip_, what);
  {
    const unique_lock lock(mutex_);
    ++report_.compilations;
  }
  if (const flywheel_status status = blob->write(blob->context, bytes.data(), bytes.size()); status != FLYWHEEL_OK)
    return fail(status, "compile: the blob could not be written");
  return FLYWHEEL_OK;
}

flywheel_status npu::load(const void* blob, std::uint64_t bytes, flywheel_executable** out) {
  if (!blob || !out || bytes > SIZE_MAX / 2) return fail(FLYWHEEL_INVALID_ARGUMENT, "load: a null argument");
  auto fresh = std::make_unique<loaded>();
  refusal no = from_blob(chip_, {static_cast<const std::byte*>(blob), static_cast<std::size_t>(bytes)}, fresh->what);
  const unique_lock lock(mutex_);
  if (lost_) return fail(FLYWHEEL_DEVICE_LOST, "load: the device is lost");
  if (no.status == FLYWHEEL_OK && faults_.strikes(fault::stale_fingerprint))
    no = {FLYWHEEL_INCOMPATIBLE, "injected fault: the blob is of another driver"};
  if (no.status == FLYWHEEL_OK && faults_.strikes(fault::truncated_blob))
    no = {FLYWHEEL_CORRUPT, "injected fault: the blob is cut off"};
  if (no.status != FLYWHEEL_OK) return fail(no.status, "load: " + no.reason);
  const std::uintptr_t handle = fresh->handle = new_handle();
  executables_.emplace(handle, std::move(fresh));
  ++report_.loads;
  ++report_.executables;
  *out = reinterpret_cast<flywheel_executable*>(handle);
  return FLYWHEEL_OK;
}

void npu::unload(flywheel_executable* executable) {
  if (!executable) return;
  const unique_lock lock(mutex_);
  loaded* const program = find(executable);
  if (!program) {
    fail(FLYWHEEL_INVALID_ARGUMENT, "unload: no executable of this device, or unloaded before");
    return;
  }
  --report_.executables;
  program->unloaded = true;
  ++program->uses;  // so that giving up does not end it here
  give_up([&](const slot& s) { return s.program == program; });
  if (program->uses > 1)
    fail(FLYWHEEL_INVALID_ARGUMENT, "unload: a submission of this executable had not ended; it fails");
  drop_use(program);
}

std::uintptr_t npu::new_handle() noexcept { return ++next_handle_ != 0 ? next_handle_ : ++next_handle_; }

memory_block* npu::find(flywheel_buffer* buffer) noexcept {
  const auto found = buffers_.find(reinterpret_cast<std::uintptr_t>(buffer));
  return found == buffers_.end() || found->second->released ? nullptr : found->second.get();
}

npu::loaded* npu::find(flywheel_executable* executable) noexcept {
  const auto found = executables_.find(reinterpret_cast<std::uintptr_t>(executable));
  return found == executables_.end() || found->second->unloaded ? nullptr : found->second.get();
}

void npu::drop_use(memory_block* block) noexcept {
  if (--block->uses == 0 && block->released) buffers_.erase(block->handle);
}

void npu::drop_use(loaded* program) noexcept {
  if (--program->uses == 0 && program->unloaded) executables_.erase(program->handle);
}

flywheel_status npu::add_buffer(std::unique_ptr<memory_block> block, flywheel_buffer** out) {
  const std::uint64_t bytes = block->bytes;
  const std::uintptr_t handle = block->handle = new_handle();
  buffers_.emplace(handle, std::move(block));
  ++report_.buffers;
  report_.bytes_alive += bytes;
  *out = reinterpret_cast<flywheel_buffer*>(handle);
  return FLYWHEEL_OK;
}

flywheel_status npu::alloc(std::uint64_t bytes, flywheel_buffer** out) {
  const profile& p = *chip_.kind;
  if (!out || bytes == 0) return fail(FLYWHEEL_INVALID_ARGUMENT, "alloc: no bytes, or nowhere to put the buffer");
  if (p.max_buffer_bytes != 0 && bytes > p.max_buffer_bytes)
    return fail(FLYWHEEL_INVALID_ARGUMENT, "alloc: " + std::to_string(bytes) + " bytes; a buffer has at most " +
                                               std::to_string(p.max_buffer_bytes));
  unique_lock lock(mutex_);
  if (lost_) return fail(FLYWHEEL_DEVICE_LOST, "alloc: the device is lost");
  if (faults_.strikes(fault::out_of_memory)) return fail(FLYWHEEL_OUT_OF_MEMORY, "alloc: injected fault");
  if (p.memory_bytes != 0 && bytes > p.memory_bytes - std::min(p.memory_bytes, report_.bytes_alive))
    return fail(FLYWHEEL_OUT_OF_MEMORY, "alloc: " + std::to_string(bytes) + " bytes beside " +
                                            std::to_string(report_.bytes_alive) + " of " +
                                            std::to_string(p.memory_bytes));
  lock.unlock();
  auto block = std::make_unique<memory_block>();
  auto memory = aligned_memory::allocate(static_cast<std::size_t>(bytes), p.alignment);
  if (!memory) return fail(FLYWHEEL_OUT_OF_MEMORY, "alloc: the host has no " + std::to_string(bytes) + " bytes");
  block->data = memory->data();
  block->bytes = bytes;
  block->owned = *std::move(memory);
  std::memset(block->data, std::to_integer<int>(poison), static_cast<std::size_t>(bytes));
  lock.lock();
  ++report_.allocations;
  return add_buffer(std::move(block), out);
}

flywheel_status npu::import_host(void* memory, std::uint64_t bytes, flywheel_buffer** out) {
  const profile& p = *chip_.kind;
  if (!memory || !out || bytes == 0)
    return fail(FLYWHEEL_INVALID_ARGUMENT, "import_host: a null argument, or no bytes");
  if (reinterpret_cast<std::uintptr_t>(memory) % p.alignment != 0)
    return fail(FLYWHEEL_INVALID_ARGUMENT, "import_host: the memory is not aligned to " + std::to_string(p.alignment));
  if (!p.unified_memory) return fail(FLYWHEEL_UNSUPPORTED, "import_host: this device has memory of its own");
  auto block = std::make_unique<memory_block>();
  block->data = static_cast<std::byte*>(memory);
  block->bytes = bytes;
  unique_lock lock(mutex_);
  if (lost_) return fail(FLYWHEEL_DEVICE_LOST, "import_host: the device is lost");
  if (faults_.strikes(fault::out_of_memory)) return fail(FLYWHEEL_OUT_OF_MEMORY, "import_host: injected fault");
  ++report_.imports;
  return add_buffer(std::move(block), out);
}

flywheel_status npu::map(flywheel_buffer* buffer, std::uint32_t access, void** out) {
  if (!out) return fail(FLYWHEEL_INVALID_ARGUMENT, "map: nowhere to put the address");
  if (access == 0 || access > (FLYWHEEL_MAP_READ | FLYWHEEL_MAP_WRITE))
    return fail(FLYWHEEL_INVALID_ARGUMENT, "map: neither for reading nor for writing");
  unique_lock lock(mutex_);
  if (lost_) return fail(FLYWHEEL_DEVICE_LOST, "map: the device is lost");
  memory_block* const block = find(buffer);
  if (!block) return fail(FLYWHEEL_INVALID_ARGUMENT, "map: no buffer of this device, or released before");
  if (block->mapped) return fail(FLYWHEEL_INVALID_ARGUMENT, "map: the buffer is mapped already");
  if (block->uses > 0) return fail(FLYWHEEL_INVALID_ARGUMENT, "map: a submission that uses the buffer has not ended");
  block->mapped = true;
  block->written = (access & FLYWHEEL_MAP_WRITE) != 0;
  if (chip_.kind->unified_memory) {
    *out = block->data;
    return FLYWHEEL_OK;
  }
  block->moving = true;
  ++block->uses;
  lock.unlock();
  const auto bytes = static_cast<std::size_t>(block->bytes);
  const result<std::byte*> area = block->staging.open(bytes, chip_.kind->alignment);
  const bool reads = (access & FLYWHEEL_MAP_READ) != 0;  // else the host finds poison
  if (area && reads) std::memcpy(*area, block->data, bytes);
  lock.lock();
  block->moving = false;
  block->mapped = area.has_value();
  if (area) {
    report_.bytes_from_device += reads ? bytes : 0;
    *out = *area;
  }
  drop_use(block);
  if (area) return FLYWHEEL_OK;
  return fail(area.error().code == errc::out_of_memory ? FLYWHEEL_OUT_OF_MEMORY : FLYWHEEL_INVALID_ARGUMENT,
              "map: " + area.error().message);
}

flywheel_status npu::unmap(flywheel_buffer* buffer) {
  unique_lock lock(mutex_);
  if (lost_) return fail(FLYWHEEL_DEVICE_LOST, "unmap: the device is lost");
  memory_block* const block = find(buffer);
  if (!block) return fail(FLYWHEEL_INVALID_ARGUMENT, "unmap: no buffer of this device, or released before");
  if (!block->mapped || block->moving) return fail(FLYWHEEL_INVALID_ARGUMENT, "unmap: the buffer is not mapped");
  if (!chip_.kind->unified_memory) {
    block->moving = true;
    ++block->uses;
    lock.unlock();
    const auto bytes = static_cast<std::size_t>(block->bytes);
    if (block->written) std::memcpy(block->data, block->staging.data(), bytes);
    block->staging.close();
    lock.lock();
    block->moving = false;
    report_.bytes_to_device += block->written ? bytes : 0;
    block->mapped = false;
    drop_use(block);
    return FLYWHEEL_OK;
  }
  block->mapped = false;
  return FLYWHEEL_OK;
}

void npu::release(flywheel_buffer* buffer) {
  if (!buffer) return;
  unique_lock lock(mutex_);
  memory_block* const block = find(buffer);
  if (!block) {
    fail(FLYWHEEL_INVALID_ARGUMENT, "release: no buffer of this device, or released before");
    return;
  }
  ++report_.releases;
  --report_.buffers;
  report_.bytes_alive -= block->bytes;
  block->released = true;
  ++block->uses;  // so that giving up does not end it here
  const auto uses_it = [&](const slot& s) {
    const auto end = s.used.begin() + s.n_used;
    return std::find(s.used.begin(), end, block) != end;
  };
  give_up(uses_it);
  if (block->uses > 1)
    fail(FLYWHEEL_INVALID_ARGUMENT, "release: a submission that uses the buffer had not ended; it fails");
#if FLYWHEEL_HAS_THREADS
  // The host's own memory must not be written to from here on.
  if (!block->owned)
    ended_.wait(lock, [&] {
      return std::none_of(slots().begin(), slots().end(),
                          [&](const slot& s) { return s.state == phase::running && uses_it(s); });
    });
#endif
  drop_use(block);
}

flywheel_status npu::fail(flywheel_status status, std::string_view text) noexcept {
  const unique_lock lock(errors_mutex_);
  const thread_id me = this_thread();
  thread_error* entry = &errors_[0];
  for (thread_error& e : errors_) {
    if (e.stamp != 0 && e.thread == me) {
      entry = &e;
      break;
    }
    if (e.stamp < entry->stamp) entry = &e;
  }
  entry->thread = me;
  entry->stamp = ++error_stamp_;
  const std::size_t n = std::min(text.size(), entry->text.size() - 1);
  std::memcpy(entry->text.data(), text.data(), n);
  entry->text[n] = 0;
  return status;
}

void npu::last_error(char* out, std::uint32_t room) noexcept {
  if (!out || room == 0) return;
  out[0] = 0;
  const unique_lock lock(errors_mutex_);
  for (const thread_error& e : errors_) {
    if (e.stamp == 0 || e.thread != this_thread()) continue;
    const std::size_t n = std::min<std::size_t>(std::strlen(e.text.data()), room - 1);
    std::memcpy(out, e.text.data(), n);
    out[n] = 0;
  }
}

simulator_report npu::report() {
  const unique_lock lock(mutex_);
  simulator_report out = report_;
  out.faults = faults_.count();
  out.fences = static_cast<std::uint64_t>(
      std::count_if(slots().begin(), slots().end(), [](const slot& s) { return s.state != phase::vacant; }));
  const double could = static_cast<double>(out.cycles) * chip_.kind->multiply_adds_per_cycle * chip_.kind->queues;
  out.utilisation = could > 0 ? static_cast<double>(out.multiply_adds) / could : 0;
  return out;
}

void npu::start_trace(std::uint64_t limit) {
  const unique_lock lock(mutex_);
  trace_.start(limit);
}

result<void> npu::write_trace(const std::filesystem::path& file) {
  std::vector<trace_event> events;
  std::uint64_t dropped = 0;
  {
    const unique_lock lock(mutex_);
    events = trace_.events();
    dropped = trace_.dropped();
  }
  return write_chrome_trace(*chip_.kind, events, dropped, file);
}

}  // namespace flywheel::inline v0::device::simulation
