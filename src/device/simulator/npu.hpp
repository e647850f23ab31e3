// A simulated NPU: everything behind its table.
//
// One lock guards all state; copies and products are done without it, on buffers and programs that a use keeps alive.
// A submission lives in one of max_in_flight slots from submit() until its fence has been waited for. Workers, one per
// queue, take what is ready in random order; a product that is done may still be held back for a random delay before
// its fence is signalled.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flywheel/device/simulator.hpp"
#include "src/device/simulator/faults.hpp"
#include "src/device/simulator/memory.hpp"
#include "src/device/simulator/program.hpp"
#include "src/device/simulator/sync.hpp"
#include "src/device/simulator/tiles.hpp"
#include "src/device/simulator/timeline.hpp"
#include "src/device/simulator/trace.hpp"

namespace flywheel::inline v0::device::simulation {

/// Functions are those of plugin.h and may throw what the standard library throws. Thread-safe.
class npu : public std::enable_shared_from_this<npu> {
 public:
  npu(const profile& p, const npu_options& options);
  npu(const npu&) = delete;
  npu& operator=(const npu&) = delete;
  ~npu();
  /// Allocates the on-chip memory and starts the workers. Errors: out_of_memory, io (no thread).
  [[nodiscard]] result<void> start();

  [[nodiscard]] const chip& on() const noexcept { return chip_; }

  /// One more user, which calls close().
  void open();
  void close();
  void lose();

  flywheel_status caps(flywheel_device_caps* out);
  flywheel_status fingerprint(char* out, std::uint32_t room);
  flywheel_status query(const flywheel_matmul* op, flywheel_support* out);
  flywheel_status packed_size(const flywheel_matmul* op, std::uint64_t* out);
  flywheel_status pack(const flywheel_matmul* op, const std::int8_t* codes, const float* scales, void* out);
  flywheel_status unpack(const flywheel_matmul* op, const void* packed, std::int8_t* codes, float* scales);

  flywheel_status compile(const flywheel_part* part, const flywheel_sink* blob);
  flywheel_status load(const void* blob, std::uint64_t bytes, flywheel_executable** out);
  void unload(flywheel_executable* executable);

  flywheel_status alloc(std::uint64_t bytes, flywheel_buffer** out);
  flywheel_status import_host(void* memory, std::uint64_t bytes, flywheel_buffer** out);
  flywheel_status map(flywheel_buffer* buffer, std::uint32_t access, void** out);
  flywheel_status unmap(flywheel_buffer* buffer);
  void release(flywheel_buffer* buffer);

  flywheel_status submit(flywheel_executable* executable, const flywheel_bindings* b, const flywheel_fence* waits,
                         std::uint32_t n_waits, flywheel_fence* out);
  flywheel_status wait(flywheel_fence fence, std::uint64_t nanoseconds);

  /// Keeps the text for last_error() of this thread and returns the status.
  flywheel_status fail(flywheel_status status, std::string_view text) noexcept;
  void last_error(char* out, std::uint32_t room) noexcept;

  [[nodiscard]] simulator_report report();
  void start_trace(std::uint64_t limit);
  [[nodiscard]] result<void> write_trace(const std::filesystem::path& file);

 private:
  struct loaded {
    program what;
    std::uintptr_t handle = 0;
    std::uint32_t uses = 0;
    bool unloaded = false;
  };
  enum class phase : std::uint8_t {
    vacant,
    waiting,  ///< For fences or a worker.
    running,
    finishing,  ///< Done, but not before `due`.
    stuck,      ///< An injected timeout: ends when the host gives up.
    ended,      ///< Its fence is signalled.
  };
  enum class fate : std::uint8_t { runs, fails, loses_device };
  struct slot {
    phase state = phase::vacant;
    fate what_happens = fate::runs;
    bool ran = false;
    bool abandoned = false;  ///< Nobody will wait for it.
    bool spoiled = false;    ///< Something of it was released before its end.
    flywheel_status outcome = FLYWHEEL_OK;
    std::uint64_t generation = 0;  ///< Of its fence.
    std::uint64_t waits = 0;       ///< Slots that have to end first.
    std::uint64_t end = 0, trace_end = 0;
    steady::duration delay{};
    steady::time_point due;
    loaded* program = nullptr;
    std::array<const std::byte*, max_inputs> codes, scales;
    std::array<const std::byte*, max_ops> weights;
    std::array<std::byte*, max_ops> outputs;
    std::array<memory_block*, 2 * max_inputs + 2 * max_ops> used;
    std::uint32_t n_used = 0;
  };
  struct thread_error {
    thread_id thread{};
    std::uint64_t stamp = 0;
    std::array<char, 256> text{};
  };

  std::uintptr_t new_handle() noexcept;
  /// Null: unknown or gone.
  memory_block* find(flywheel_buffer* buffer) noexcept;
  loaded* find(flywheel_executable* executable) noexcept;
  flywheel_status add_buffer(std::unique_ptr<memory_block> block, flywheel_buffer** out);
  /// The last use of what was released ends it.
  void drop_use(memory_block* block) noexcept;
  void drop_use(loaded* program) noexcept;
  /// Submissions for which `which` holds fail, injected timeouts among them: the host has given up on them. One that a
  /// worker is at fails when that is done.
  template <class F>
  void give_up(F&& which) noexcept;

  // queue.cpp
  flywheel_status bind(slot& s, const flywheel_region& where, std::uint64_t bytes, const char* what,
                       std::uint32_t index, std::byte** out);
  flywheel_status bind_all(slot& s, const program& what, const flywheel_bindings& b);
  flywheel_status check_overlaps(const slot& s, const program& what);
  slot* find_fence(flywheel_fence fence, bool& known) noexcept;
  void place(slot& s, std::uint64_t waits) noexcept;
  bool work(unique_lock& lock, matrix_unit& unit);
  void run(unique_lock& lock, matrix_unit& unit, slot& s);
  void compute(matrix_unit& unit, const slot& s) noexcept;
  void finish(slot& s, flywheel_status outcome) noexcept;
  void vacate(slot& s) noexcept;
  void worker(matrix_unit& unit);
  std::span<slot> slots() noexcept { return {slots_.data(), chip_.kind->max_in_flight}; }
  /// Around what the host calls while it drives the device: time between is the host's.
  void enter() noexcept;
  void leave() noexcept;
  void end_everything() noexcept;

  const chip chip_;
  const npu_options options_;
  std::vector<matrix_unit> units_;  ///< One per queue.
#if FLYWHEEL_HAS_THREADS
  std::vector<std::thread> workers_;
#endif

  mutex mutex_;
  condition work_, ended_;  ///< Something can be done; something has ended.
  bool stopping_ = false, lost_ = false;
  std::shared_ptr<npu> users_;  ///< Keeps the device alive while it is open.
  std::uint64_t open_ = 0;
  std::uintptr_t next_handle_ = 0;
  std::unordered_map<std::uintptr_t, std::unique_ptr<memory_block>> buffers_;
  std::unordered_map<std::uintptr_t, std::unique_ptr<loaded>> executables_;
  std::array<slot, max_submissions> slots_;
  fault_source faults_;
  std::mt19937_64 delays_, order_;
  simulator_report report_;
  timeline device_time_, trace_time_;  ///< Without and with what the host takes between its calls.
  trace_log trace_;
  steady::time_point left_{};  ///< When the host last returned from submit() or wait().
  bool entered_ = false;

  mutex errors_mutex_;
  std::array<thread_error, 32> errors_;  ///< Of the threads that failed last.
  std::uint64_t error_stamp_ = 0;
};

}  // namespace flywheel::inline v0::device::simulation
