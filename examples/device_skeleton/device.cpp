// A device for flywheel, small and whole: copy it and replace what computes. It multiplies on the host with plain
// loops, but has what an accelerator has: its own layout of weights, compiled programs that are checked when they are
// loaded, and a queue that works while the host goes on. flywheel/device/plugin.h is all it needs.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "flywheel/device/plugin.h"

// What plugin.h leaves to the implementer. ---------------------------------------------------------------------------

struct flywheel_buffer {
  unsigned char* memory;
  bool owned;  // else the host's
};

struct flywheel_executable {
  std::vector<flywheel_matmul> ops;
  uint32_t n_inputs;
};

// A submission: everything it needs is copied, since the caller's bindings end with submit().
struct job {
  const flywheel_executable* program;
  std::vector<flywheel_input> inputs;
  std::vector<flywheel_region> weights, outputs;
};

struct flywheel_device {
  std::mutex mutex;
  std::condition_variable more_work, some_done;
  std::deque<job> queue;
  flywheel_fence submitted = 0, done = 0;  // the queue works in order: fences are numbers, ended up to `done`
  bool closing = false;
  std::thread worker;
};

namespace {
constexpr uint32_t alignment = 64, max_in_flight = 64, lanes = 8;
constexpr uint64_t memory_limit = uint64_t{1} << 32, one_hour = 3600000000000;
constexpr char fingerprint_text[] = "skeleton-1;host;loops-1";
// clang-format off
constexpr flywheel_device_caps description = {
    0, FLYWHEEL_DEVICE_ABI, "skeleton", "flywheel", "host", "1",  // size, ABI, name, vendor, architecture, driver
    1, lanes, 1, alignment, 0, 0, memory_limit,                   // tile m, n, k; alignment, scratch, memory, buffer
    1, max_in_flight, 1, 1,                                       // queues, in flight, static shapes, unified memory
    0, 0, 0, 4, {{8, 0}, {4, 0}, {8, 128}, {4, 128}}};            // rates and launch unknown; formats
// clang-format on
thread_local const char* last_failure = "";

flywheel_status refuse(flywheel_status status, const char* why) {
  last_failure = why;
  return status;
}

// Structs begin with the size that the caller has room for.
template <class T>
flywheel_status give(T value, T* out) {
  value.size = out->size;
  std::memcpy(static_cast<void*>(out), &value, out->size < sizeof value ? out->size : sizeof value);
  return FLYWHEEL_OK;
}

int64_t group_of(const flywheel_matmul& op) { return op.weights.group == 0 ? op.k : op.weights.group; }
int64_t groups_of(const flywheel_matmul& op) { return (op.k + group_of(op) - 1) / group_of(op); }

// Whether a device computes an operation is decided here, for query() and for everybody else.
const char* why_not(const flywheel_matmul& op) {
  if (op.kind != FLYWHEEL_OP_MATMUL) return "only matmul is computed here";
  if (op.n < 1 || op.n > 1 << 24 || op.k < 1 || op.k > 131071 || op.rows < 0 || op.rows > 1 << 20)
    return "n must be in 1..16777216, k in 1..131071, rows in 0..1048576";
  for (const flywheel_weight_format& f : description.weight_formats)
    if (f.bits == op.weights.bits && f.group == op.weights.group) return nullptr;
  return "weights must have 8 or 4 bits, with a scale per row or per 128 elements";
}

// The layout of weights: tiles of eight rows of w, what eight lanes of a matrix unit want to read. A tile is [k][8]
// codes, then [groups][8] scales; rows that fill the last one are zeros. (Two 4-bit codes would fit into a byte.)
struct layout {
  int64_t k, tile_bytes;
  explicit layout(const flywheel_matmul& op) : k(op.k), tile_bytes((op.k + groups_of(op) * 4) * lanes) {}
  int64_t code(int64_t c, int64_t i) const { return c / lanes * tile_bytes + i * lanes + c % lanes; }
  int64_t scale(int64_t c, int64_t g) const { return c / lanes * tile_bytes + k * lanes + (g * lanes + c % lanes) * 4; }
  uint64_t bytes(int64_t n) const { return static_cast<uint64_t>((n + lanes - 1) / lanes * tile_bytes); }
};

// The formula of plugin.h, in its order of sums. Compile without fused multiply-adds: every operation rounds once.
void multiply(const flywheel_matmul& op, const int8_t* w, const int8_t* x, const float* x_scales, float* y) {
  const layout l(op);
  const int64_t groups = groups_of(op), group = group_of(op);
  for (int64_t c = 0; c < op.n; ++c)
    for (int64_t r = 0; r < op.rows; ++r)
      for (int64_t g = 0; g < groups; ++g) {
        int32_t exact = 0;
        for (int64_t i = g * group; i < op.k && i < (g + 1) * group; ++i) exact += x[r * op.k + i] * w[l.code(c, i)];
        float scale;
        std::memcpy(&scale, w + l.scale(c, g), sizeof scale);
        const float term = (static_cast<float>(exact) * scale) * x_scales[r * groups + g];
        float& sum = y[r * op.n + c];
        sum = g == 0 ? term : sum + term;
      }
}

// The queue: one worker, in order. What a submission waits for was submitted before it, and hence ends before it.
void work(flywheel_device* d) {
  std::unique_lock lock(d->mutex);
  for (;;) {
    d->more_work.wait(lock, [&] { return d->closing || !d->queue.empty(); });
    if (d->queue.empty()) return;
    const job j = std::move(d->queue.front());
    d->queue.pop_front();
    lock.unlock();
    for (size_t i = 0; i < j.program->ops.size(); ++i) {
      const flywheel_matmul& op = j.program->ops[i];
      const auto at = [](const flywheel_region& r) { return r.buffer->memory + r.offset; };
      const flywheel_input& x = j.inputs[op.input];
      multiply(op, reinterpret_cast<const int8_t*>(at(j.weights[i])), reinterpret_cast<const int8_t*>(at(x.codes)),
               reinterpret_cast<const float*>(at(x.scales)), reinterpret_cast<float*>(at(j.outputs[i])));
    }
    lock.lock();
    ++d->done;
    d->some_done.notify_all();
  }
}

// A program as bytes: this header, then its operations. `checksum` covers all that follows it.
struct blob_header {
  uint64_t checksum;
  char fingerprint[sizeof fingerprint_text];
  uint32_t n_ops, n_inputs;
};

uint64_t checksum(const std::vector<unsigned char>& blob) {  // FNV-1a
  uint64_t hash = 14695981039346656037u;
  for (size_t i = sizeof hash; i < blob.size(); ++i) hash = (hash ^ blob[i]) * 1099511628211u;
  return hash;
}

// The functions of the table. ----------------------------------------------------------------------------------------

void close_device(flywheel_device* d) {
  {
    const std::lock_guard lock(d->mutex);
    d->closing = true;
  }
  d->more_work.notify_all();
  d->worker.join();
  delete d;
}

flywheel_status caps(flywheel_device*, flywheel_device_caps* out) { return give(description, out); }
flywheel_status fingerprint(flywheel_device*, char* out, uint32_t room) {
  std::snprintf(out, room, "%s", fingerprint_text);
  return FLYWHEEL_OK;
}

flywheel_status query(flywheel_device*, const flywheel_matmul* op, flywheel_support* out) {
  const char* reason = why_not(*op);
  flywheel_support s = {0, reason == nullptr, {}, 0, 0};
  if (reason != nullptr) std::snprintf(s.reason, sizeof s.reason, "%s", reason);
  give(s, out);
  return op->kind == FLYWHEEL_OP_MATMUL ? FLYWHEEL_OK : FLYWHEEL_UNSUPPORTED;
}

flywheel_status packed_size(flywheel_device*, const flywheel_matmul* op, uint64_t* out) {
  if (const char* reason = why_not(*op)) return refuse(FLYWHEEL_UNSUPPORTED, reason);
  *out = layout(*op).bytes(op->n);
  return FLYWHEEL_OK;
}

flywheel_status pack(flywheel_device*, const flywheel_matmul* op, const int8_t* codes, const float* scales, void* out) {
  if (const char* reason = why_not(*op)) return refuse(FLYWHEEL_UNSUPPORTED, reason);
  const layout l(*op);
  auto* packed = static_cast<int8_t*>(out);
  std::memset(packed, 0, l.bytes(op->n));
  for (int64_t c = 0; c < op->n; ++c) {
    for (int64_t i = 0; i < op->k; ++i) packed[l.code(c, i)] = *codes++;
    for (int64_t g = 0; g < groups_of(*op); ++g) std::memcpy(packed + l.scale(c, g), scales++, sizeof *scales);
  }
  return FLYWHEEL_OK;
}

flywheel_status unpack(flywheel_device*, const flywheel_matmul* op, const void* from, int8_t* codes, float* scales) {
  if (const char* reason = why_not(*op)) return refuse(FLYWHEEL_UNSUPPORTED, reason);
  const layout l(*op);
  const auto* packed = static_cast<const int8_t*>(from);
  for (int64_t c = 0; c < op->n; ++c) {
    for (int64_t i = 0; i < op->k; ++i) *codes++ = packed[l.code(c, i)];
    for (int64_t g = 0; g < groups_of(*op); ++g) std::memcpy(scales++, packed + l.scale(c, g), sizeof *scales);
  }
  return FLYWHEEL_OK;
}

flywheel_status compile(flywheel_device*, const flywheel_part* part, const flywheel_sink* sink) {
  for (uint32_t i = 0; i < part->n_ops; ++i)
    if (const char* reason = why_not(part->ops[i])) return refuse(FLYWHEEL_UNSUPPORTED, reason);
  blob_header header = {0, {}, part->n_ops, part->n_inputs};
  std::memcpy(header.fingerprint, fingerprint_text, sizeof fingerprint_text);
  std::vector<unsigned char> blob(sizeof header + part->n_ops * sizeof(flywheel_matmul));
  if (part->n_ops > 0) std::memcpy(blob.data() + sizeof header, part->ops, part->n_ops * sizeof(flywheel_matmul));
  std::memcpy(blob.data(), &header, sizeof header);
  header.checksum = checksum(blob);
  std::memcpy(blob.data(), &header, sizeof header);
  return sink->write(sink->context, blob.data(), blob.size());
}

flywheel_status load(flywheel_device*, const void* bytes, uint64_t size, flywheel_executable** out) {
  blob_header header;
  if (size < sizeof header) return refuse(FLYWHEEL_CORRUPT, "the blob is too short");
  const auto* first = static_cast<const unsigned char*>(bytes);
  const std::vector<unsigned char> blob(first, first + size);
  std::memcpy(&header, blob.data(), sizeof header);
  if (header.checksum != checksum(blob)) return refuse(FLYWHEEL_CORRUPT, "the blob's checksum is wrong");
  if (std::memcmp(header.fingerprint, fingerprint_text, sizeof fingerprint_text) != 0)
    return refuse(FLYWHEEL_INCOMPATIBLE, "the blob was compiled for another device");
  if (size != sizeof header + header.n_ops * sizeof(flywheel_matmul))
    return refuse(FLYWHEEL_CORRUPT, "the blob's size is wrong");
  auto* program = new flywheel_executable{std::vector<flywheel_matmul>(header.n_ops), header.n_inputs};
  if (header.n_ops > 0) std::memcpy(program->ops.data(), first + sizeof header, blob.size() - sizeof header);
  *out = program;
  return FLYWHEEL_OK;
}

// The host may give back what a submission still uses that it no longer waits for. The queue is short: wait for all.
void finish_all(flywheel_device* d) {
  std::unique_lock lock(d->mutex);
  d->some_done.wait(lock, [&] { return d->done == d->submitted; });
}

void unload(flywheel_device* d, flywheel_executable* program) { finish_all(d), delete program; }
flywheel_status alloc(flywheel_device*, uint64_t bytes, flywheel_buffer** out) {
  if (bytes > memory_limit) return refuse(FLYWHEEL_OUT_OF_MEMORY, "a buffer has at most 4 GiB");
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment));
  if (memory == nullptr) return refuse(FLYWHEEL_OUT_OF_MEMORY, "the host has no memory left");
  *out = new flywheel_buffer{memory, true};
  return FLYWHEEL_OK;
}

flywheel_status import_host(flywheel_device*, void* memory, uint64_t, flywheel_buffer** out) {
  *out = new flywheel_buffer{static_cast<unsigned char*>(memory), false};
  return FLYWHEEL_OK;
}

// With memory of its own, a device copies here: from it in map() for reading, to it in unmap() after writing.
flywheel_status map(flywheel_device*, flywheel_buffer* buffer, uint32_t, void** out) {
  *out = buffer->memory;
  return FLYWHEEL_OK;
}
flywheel_status unmap(flywheel_device*, flywheel_buffer*) { return FLYWHEEL_OK; }
void release(flywheel_device* d, flywheel_buffer* buffer) {
  finish_all(d);
  if (buffer->owned) std::free(buffer->memory);
  delete buffer;
}

flywheel_status submit(flywheel_device* d, flywheel_executable* program, const flywheel_bindings* b,
                       const flywheel_fence*, uint32_t, flywheel_fence* out) {
  if (b->n_ops != program->ops.size() || b->n_inputs != program->n_inputs)
    return refuse(FLYWHEEL_INVALID_ARGUMENT, "the bindings are not those of the program");
  const std::lock_guard lock(d->mutex);
  if (d->submitted - d->done >= max_in_flight) return refuse(FLYWHEEL_FAILED, "too many submissions are in flight");
  d->queue.push_back({program,
                      {b->inputs, b->inputs + b->n_inputs},
                      {b->weights, b->weights + b->n_ops},
                      {b->outputs, b->outputs + b->n_ops}});
  *out = ++d->submitted;
  d->more_work.notify_one();
  return FLYWHEEL_OK;
}

flywheel_status wait(flywheel_device* d, flywheel_fence fence, uint64_t nanoseconds) {
  std::unique_lock lock(d->mutex);
  if (fence == 0 || fence > d->submitted) return refuse(FLYWHEEL_INVALID_ARGUMENT, "there is no such fence");
  const auto time = std::chrono::nanoseconds(nanoseconds < one_hour ? nanoseconds : one_hour);
  return d->some_done.wait_for(lock, time, [&] { return d->done >= fence; }) ? FLYWHEEL_OK : FLYWHEEL_TIMEOUT;
}

void last_error(flywheel_device*, char* out, uint32_t room) { std::snprintf(out, room, "%s", last_failure); }

flywheel_status open_device(uint32_t, const char* options, flywheel_device_table* out) {
  if (options != nullptr && options[0] != 0) return FLYWHEEL_INVALID_ARGUMENT;
  auto* d = new flywheel_device;
  d->worker = std::thread(work, d);
  return give({0,    d,      close_device, caps,        fingerprint, query, packed_size, pack,   unpack, compile,
               load, unload, alloc,        import_host, map,         unmap, release,     submit, wait,   last_error},
              out);
}
}  // namespace

extern "C" flywheel_status flywheel_device_open(uint32_t abi, flywheel_device_factory* out) {
  if (abi != FLYWHEEL_DEVICE_ABI) return FLYWHEEL_INCOMPATIBLE;
  return give({0, 1, [](uint32_t) { return "skeleton"; }, open_device}, out);
}
