// Devices that are wrong on purpose: the skeleton with one function replaced. Each is named after its fault.
#include <array>
#include <csignal>
#include <iterator>
#include <string_view>

#define flywheel_device_open skeleton_device_open
#include "examples/device_skeleton/device.cpp"
#undef flywheel_device_open

namespace {

flywheel_device_table sound;  // the skeleton's own functions
flywheel_fence forgotten = 0;

float* first_output(const job& j) {
  return reinterpret_cast<float*>(j.outputs[0].buffer->memory + j.outputs[0].offset);
}

// What is submitted right now, so that wait() can damage what the worker made.
std::deque<std::pair<flywheel_fence, job>> submitted_jobs;
std::mutex submitted_mutex;

flywheel_status submit_and_remember(flywheel_device* d, flywheel_executable* p, const flywheel_bindings* b,
                                    const flywheel_fence* waits, uint32_t n_waits, flywheel_fence* out) {
  const std::lock_guard lock(submitted_mutex);
  const flywheel_status status = sound.submit(d, p, b, waits, n_waits, out);
  if (status == FLYWHEEL_OK)
    submitted_jobs.emplace_back(*out, job{p,
                                          {b->inputs, b->inputs + b->n_inputs},
                                          {b->weights, b->weights + b->n_ops},
                                          {b->outputs, b->outputs + b->n_ops}});
  return status;
}

/// Work for milliseconds, so that what is submitted next has not ended when the caller goes on.
void occupy(flywheel_device* d) {
  static std::vector<unsigned char> zeros(1 << 20);
  static flywheel_buffer memory = {zeros.data(), false};
  static flywheel_executable program = [] {
    flywheel_matmul op = {};
    op.size = sizeof op;
    op.kind = FLYWHEEL_OP_MATMUL;
    op.rows = 128, op.n = 128, op.k = 512;
    op.weights = {8, 0};
    flywheel_executable made;
    made.ops = {op};
    made.n_inputs = 1;
    return made;
  }();
  const flywheel_input input = {{&memory, 0}, {&memory, 128 << 10}};
  const flywheel_region weights = {&memory, 256 << 10}, output = {&memory, 512 << 10};
  const flywheel_bindings all = {sizeof all, 1, 1, &input, &weights, &output};
  flywheel_fence unused = 0;
  sound.submit(d, &program, &all, nullptr, 0, &unused);
}

template <void (*Damage)(const job&)>
flywheel_status wait_and_damage(flywheel_device* d, flywheel_fence fence, uint64_t nanoseconds) {
  const flywheel_status status = sound.wait(d, fence, nanoseconds);
  if (status != FLYWHEEL_OK) return status;
  const std::lock_guard lock(submitted_mutex);
  for (auto it = submitted_jobs.begin(); it != submitted_jobs.end(); ++it)
    if (it->first == fence) {
      Damage(it->second);
      submitted_jobs.erase(it);
      break;
    }
  return status;
}

template <void (*Damage)(const job&)>
void damage_jobs(flywheel_device_table& t) {
  t.submit = submit_and_remember;
  t.wait = wait_and_damage<Damage>;
}

void one_place_off(const job& j) {
  uint32_t bits;
  std::memcpy(&bits, first_output(j), sizeof bits);
  bits ^= 1;
  std::memcpy(first_output(j), &bits, sizeof bits);
}
void write_beyond(const job& j) {
  const flywheel_matmul& op = j.program->ops[0];
  std::memset(first_output(j) + op.rows * op.n, 0, 12);
}
void change_input(const job& j) { j.inputs[0].codes.buffer->memory[j.inputs[0].codes.offset] ^= 1; }

struct fault {
  const char* name;
  void (*apply)(flywheel_device_table&);
};
constexpr fault faults[] = {
    {"result-off-by-one-place", damage_jobs<one_place_off>},
    {"output-overrun", damage_jobs<write_beyond>},
    {"input-changed", damage_jobs<change_input>},
    {"code-off-by-one",
     [](flywheel_device_table& t) {  // one code of weights, a rounding gone wrong
       t.pack = [](flywheel_device* d, const flywheel_matmul* op, const int8_t* codes, const float* scales, void* out) {
         const flywheel_status status = sound.pack(d, op, codes, scales, out);
         auto* packed = static_cast<int8_t*>(out);
         if (status == FLYWHEEL_OK) packed[0] = static_cast<int8_t>(packed[0] + (packed[0] < 0 ? 1 : -1));
         return status;
       };
     }},
    {"fence-forgotten",
     [](flywheel_device_table& t) {  // wait() knows the last submission alone
       t.wait = [](flywheel_device* d, flywheel_fence fence, uint64_t nanoseconds) -> flywheel_status {
         uint64_t last = 0;
         {
           const std::lock_guard lock(d->mutex);
           last = d->submitted;
         }
         return fence + 8 < last ? flywheel_status{FLYWHEEL_INVALID_ARGUMENT} : sound.wait(d, fence, nanoseconds);
       };
     }},
    {"fence-shared",
     [](flywheel_device_table& t) {  // every other submission gets the fence of the one before
       t.submit = [](flywheel_device* d, flywheel_executable* p, const flywheel_bindings* b,
                     const flywheel_fence* waits, uint32_t n_waits, flywheel_fence* out) {
         const flywheel_status status = sound.submit(d, p, b, waits, n_waits, out);
         if (status == FLYWHEEL_OK && *out % 2 == 0) --*out;
         return status;
       };
     }},
    {"fence-never-signalled",
     [](flywheel_device_table& t) {
       t.wait = [](flywheel_device* d, flywheel_fence fence, uint64_t nanoseconds) -> flywheel_status {
         if (forgotten == 0 && fence == 3) forgotten = fence;
         if (fence != forgotten) return sound.wait(d, fence, nanoseconds);
         std::this_thread::sleep_for(std::chrono::nanoseconds(nanoseconds));
         return FLYWHEEL_TIMEOUT;
       };
     }},
    {"wait-without-end",
     [](flywheel_device_table& t) {
       t.wait = [](flywheel_device*, flywheel_fence, uint64_t) -> flywheel_status {
         for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
       };
     }},
    {"packed-size-too-small",
     [](flywheel_device_table& t) {
       t.packed_size = [](flywheel_device* d, const flywheel_matmul* op, uint64_t* out) {
         const flywheel_status status = sound.packed_size(d, op, out);
         if (status == FLYWHEEL_OK) *out -= 4;
         return status;
       };
     }},
    {"packed-size-too-large",
     [](flywheel_device_table& t) {
       t.packed_size = [](flywheel_device* d, const flywheel_matmul* op, uint64_t* out) {
         const flywheel_status status = sound.packed_size(d, op, out);
         *out += 64;
         return status;
       };
     }},
    {"corrupt-blob-accepted",
     [](flywheel_device_table& t) {  // the checksum is not looked at
       t.load = [](flywheel_device* d, const void* bytes, uint64_t size, flywheel_executable** out) {
         const auto* first = static_cast<const unsigned char*>(bytes);
         std::vector<unsigned char> blob(first, first + size);
         if (size >= sizeof(uint64_t)) {
           const uint64_t right = checksum(blob);
           std::memcpy(blob.data(), &right, sizeof right);
         }
         return sound.load(d, blob.data(), blob.size(), out);
       };
     }},
    {"waits-ignored",
     [](flywheel_device_table& t) {  // a submission is computed at once, before those that it waits for have ended
       t.submit = [](flywheel_device* d, flywheel_executable* p, const flywheel_bindings* b,
                     const flywheel_fence* waits, uint32_t n_waits, flywheel_fence* out) {
         if (n_waits == 0) {
           occupy(d);
           return sound.submit(d, p, b, waits, n_waits, out);
         }
         const job j{p,
                     {b->inputs, b->inputs + b->n_inputs},
                     {b->weights, b->weights + b->n_ops},
                     {b->outputs, b->outputs + b->n_ops}};
         const auto at = [](const flywheel_region& r) { return r.buffer->memory + r.offset; };
         const flywheel_matmul& op = p->ops[0];
         multiply(op, reinterpret_cast<const int8_t*>(at(j.weights[0])),
                  reinterpret_cast<const int8_t*>(at(j.inputs[op.input].codes)),
                  reinterpret_cast<const float*>(at(j.inputs[op.input].scales)),
                  reinterpret_cast<float*>(at(j.outputs[0])));
         static flywheel_executable nothing;
         const flywheel_bindings none = {sizeof none, 0, 0, nullptr, nullptr, nullptr};
         return sound.submit(d, &nothing, &none, nullptr, 0, out);
       };
     }},
    {"huge-buffer-accepted",
     [](flywheel_device_table& t) {  // sizes wrap around
       t.alloc = [](flywheel_device* d, uint64_t bytes, flywheel_buffer** out) {
         return sound.alloc(d, bytes & 0xFFFFFFF, out);
       };
     }},
    {"crash-in-compile",
     [](flywheel_device_table& t) {
       t.compile = [](flywheel_device*, const flywheel_part*, const flywheel_sink*) -> flywheel_status {
         std::raise(SIGSEGV);
         return FLYWHEEL_FAILED;
       };
     }},
    {"exception-in-query",
     [](flywheel_device_table& t) {
       t.query = [](flywheel_device*, const flywheel_matmul*, flywheel_support*) -> flywheel_status { throw 1; };
     }},
    {"no-wait", [](flywheel_device_table& t) { t.wait = nullptr; }},
    {"strange-caps",
     [](flywheel_device_table& t) {
       t.caps = [](flywheel_device* d, flywheel_device_caps* out) {
         const flywheel_status status = sound.caps(d, out);
         out->alignment = 48;
         return status;
       };
     }},
};

const char* fault_name(uint32_t index) { return faults[index].name; }

flywheel_status open_broken(uint32_t index, const char* options, flywheel_device_table* out) {
  const flywheel_status status = open_device(0, options, out);
  if (status != FLYWHEEL_OK) return status;
  sound = *out;
  faults[index].apply(*out);
  return status;
}

}  // namespace

extern "C" flywheel_status flywheel_device_open(uint32_t abi, flywheel_device_factory* out) {
  if (abi != FLYWHEEL_DEVICE_ABI) return FLYWHEEL_INCOMPATIBLE;
  return give(flywheel_device_factory{0, std::size(faults), fault_name, open_broken}, out);
}
