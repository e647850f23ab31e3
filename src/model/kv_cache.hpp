// What a model remembers of one sequence: keys and values in pages of kv_page_tokens positions, and recurrent states.
//
// Layers that see equally far back form a group. One block of memory holds the pages of all layers of a group for the
// same positions. Blocks are shared between forks and copied when one side writes. Blocks that no later token will see
// go when their window has passed, but for one, so that small truncations find what they need.
//
// Recurrent states of all layers are one block for the state before a computation and one for the state after it:
// advance() exchanges them, so a computation that fails leaves the old state whole.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/executor.hpp"
#include "flywheel/core/ops.hpp"
#include "flywheel/core/result.hpp"
#include "src/model/kv_layout.hpp"

namespace flywheel::inline v0::detail {

/// Where a layout's pages and states lie in their blocks. Shared by all forks.
struct kv_plan {
  struct place {
    std::size_t slot = 0;
    std::size_t offset = 0;  ///< Bytes from the block's begin.
  };
  struct group {
    std::int64_t window = 0;  ///< 0: all positions stay.
    std::vector<place> places;
    std::size_t block_bytes = 0;

    /// The first block that tokens from position `size` on still see.
    [[nodiscard]] std::size_t first_seen(std::int64_t size) const noexcept;
  };
  kv_layout layout;
  dtype type = dtype::f16;
  std::vector<group> groups;
  std::vector<place> states;
  std::size_t state_bytes = 0;
};

/// Positions 0 .. size()-1 are filled. To add some: reserve(), write their rows and the next states, advance(). One
/// thread at a time; forks are independent of each other, also on different threads.
class kv_cache {
 public:
  /// Empty; holds no pages yet. Errors: invalid_argument (kv_type is not f16, f32, q8_0 or q4_0, or does not fit a
  /// layer's head_dim; sizes not positive or too large); out_of_memory.
  /// `memory` null: the default resource; it must outlive the cache and its forks.
  [[nodiscard]] static result<kv_cache> create(const kv_layout& layout, dtype kv_type,
                                               std::pmr::memory_resource* memory = nullptr);
  kv_cache(kv_cache&&) noexcept = default;
  kv_cache& operator=(kv_cache&&) noexcept = default;

  /// What bytes() will be at most with `positions` filled, known beforehand. Errors: those of create; out_of_memory
  /// when the number does not fit size_t.
  [[nodiscard]] static result<std::size_t> bytes_for(const kv_layout& layout, dtype kv_type, std::int64_t positions);

  [[nodiscard]] const kv_layout& layout() const noexcept { return plan_->layout; }
  [[nodiscard]] dtype kv_type() const noexcept { return plan_->type; }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  /// Bytes of pages, states and page tables. Blocks shared with forks count in each of them.
  [[nodiscard]] std::size_t bytes() const noexcept;

  /// Calls `each` for every block held; gives the bytes of page tables.
  std::size_t visit_blocks(function_ref<void(const void* block, std::size_t bytes)> each) const;

  /// Makes positions size() .. positions-1 and the next states writable: allocates missing blocks, copies a shared one
  /// that is partly filled. Needed before each advance(). Error: out_of_memory; the cache is as before.
  [[nodiscard]] result<void> reserve(std::int64_t positions);
  /// Declares the rows up to `positions`, which were reserved, and the next states as written.
  void advance(std::int64_t positions) noexcept;
  /// Forgets everything from `positions` on and frees blocks that are not needed any more. Forgets everything when the
  /// past of that position is not there: see can_truncate.
  void truncate(std::int64_t positions) noexcept;
  /// Whether the sequence could go on from `positions`: always from size() and 0; not where a window's blocks are gone
  /// or a recurrent state has moved on.
  [[nodiscard]] bool can_truncate(std::int64_t positions) const noexcept;
  /// Shares the filled blocks. Error: out_of_memory.
  [[nodiscard]] result<kv_cache> fork() const;

  /// Pages of one layer in order of position; null for a layer without. Rows from size() on may be written when they
  /// were reserved; what a window has left behind must not be touched. Valid until the next call of reserve().
  [[nodiscard]] std::byte* const* pages(std::size_t layer) const noexcept { return pages_[layer]; }
  /// The same for all layers.
  [[nodiscard]] std::byte* const* const* pages() const noexcept { return pages_.data(); }
  /// [layer]: the state after size() positions, and where the one after the reserved positions belongs; null for a
  /// layer without. Valid after reserve(), until the next advance() or truncate().
  [[nodiscard]] const std::byte* const* states() const noexcept { return states_.data(); }
  [[nodiscard]] std::byte* const* next_states() const noexcept { return next_states_.data(); }

  // For files: what the sequence needs to go on, as pieces that depend on layout, type and size() only.

  /// Length of all pieces together of a cache with `positions` filled; at most bytes_for(positions).
  [[nodiscard]] std::size_t stored_bytes(std::int64_t positions) const noexcept;
  /// Calls `piece` for each piece in order; stops at an error.
  [[nodiscard]] result<void> visit(function_ref<result<void>(std::span<const std::byte>)> piece) const;
  /// Makes an empty cache one of `positions` filled positions; `piece` writes what visit() gave. Error: out_of_memory
  /// or that of `piece`; the cache must not be used afterwards.
  [[nodiscard]] result<void> restore(std::int64_t positions, function_ref<result<void>(std::span<std::byte>)> piece);

 private:
  struct block {
    std::atomic<std::uint32_t> references{1};
    buffer bytes;
  };
  class block_ref {
   public:
    block_ref() noexcept = default;
    explicit block_ref(block* taken) noexcept : block_(taken) {}
    block_ref(const block_ref& other) noexcept : block_(other.block_) {
      if (block_ != nullptr) block_->references.fetch_add(1, std::memory_order_relaxed);
    }
    block_ref(block_ref&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
    block_ref& operator=(block_ref other) noexcept {
      std::swap(block_, other.block_);
      return *this;
    }
    ~block_ref() {
      if (block_ != nullptr && block_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete block_;
    }
    [[nodiscard]] explicit operator bool() const noexcept { return block_ != nullptr; }
    /// Nobody else can see it. Acquire: what others did with it before they let go has happened.
    [[nodiscard]] bool unique() const noexcept { return block_->references.load(std::memory_order_acquire) == 1; }
    [[nodiscard]] std::byte* data() const noexcept { return block_->bytes.mutable_data(); }

   private:
    block* block_ = nullptr;
  };
  /// The blocks of a group.
  struct block_list {
    std::size_t first = 0;          ///< Index of blocks[0]: those before it are gone.
    std::size_t capacity = 0;       ///< Blocks that the table has room for.
    std::vector<block_ref> blocks;  ///< In order of position.
    std::vector<std::byte*> table;  ///< [places, capacity], by absolute index.
    [[nodiscard]] std::size_t end() const noexcept { return first + blocks.size(); }
    [[nodiscard]] const block_ref& at(std::size_t index) const noexcept { return blocks[index - first]; }
  };

  kv_cache(std::shared_ptr<const kv_plan> plan, std::pmr::memory_resource* memory);
  [[nodiscard]] result<block_ref> new_block(std::size_t bytes) const;
  [[nodiscard]] result<void> grow(std::size_t group, std::size_t blocks);
  [[nodiscard]] result<void> grow_states();
  void drop_reserved() noexcept;
  void enter(std::size_t group, std::size_t index) noexcept;
  void enter_tables(std::size_t group) noexcept;
  void enter_states() noexcept;
  template <class F>
  [[nodiscard]] result<void> visit_pieces(F&& piece) const;

  std::shared_ptr<const kv_plan> plan_;
  std::pmr::memory_resource* memory_ = nullptr;
  std::int64_t size_ = 0;
  std::vector<block_list> lists_;         ///< By group.
  block_ref state_, next_state_;          ///< state_: none while size_ is 0 and nothing is reserved.
  std::vector<std::byte* const*> pages_;  ///< [layer]
  std::vector<const std::byte*> states_;  ///< [layer]
  std::vector<std::byte*> next_states_;   ///< [layer]
};

}  // namespace flywheel::inline v0::detail
