#include "src/model/kv_cache.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "flywheel/detail/try.hpp"
#include "kernels/attention/page.hpp"

namespace flywheel::inline v0::detail {
namespace {

constexpr std::size_t page_tokens = static_cast<std::size_t>(kv_page_tokens);
constexpr std::size_t first_capacity = 8;  // blocks: 512 positions
constexpr std::size_t most_bytes = std::numeric_limits<std::size_t>::max() / 2;

std::size_t blocks_for(std::int64_t positions) noexcept {
  return (static_cast<std::size_t>(positions) + page_tokens - 1) / page_tokens;
}

/// The table doubles, so that appending blocks costs little.
std::size_t capacity_for(std::size_t blocks) noexcept {
  std::size_t capacity = first_capacity;
  while (capacity < blocks) capacity *= 2;
  return capacity;
}

/// One block before what is still seen stays.
std::size_t first_kept(const kv_plan::group& g, std::int64_t size) noexcept {
  const std::size_t seen = g.first_seen(size);
  return seen > 0 ? seen - 1 : 0;
}

error does_not_fit() { return {errc::invalid_argument, "a page does not fit the address space", "KV cache"}; }

result<std::size_t> bytes_of_page(const kv_slot& slot, dtype type) {
  const auto invalid = [](std::string message) {
    return error{errc::invalid_argument, std::move(message), "session_options::kv_type"};
  };
  if (kernels::kv_block_bytes(type) == 0)
    return invalid("the KV cache can be F16, F32, Q8_0 or Q4_0, not " + std::string(to_string(type)));
  if (slot.n_kv_heads <= 0 || slot.head_dim <= 0 || slot.window < 0)
    return error{errc::invalid_argument, "heads and head size must be positive", "KV cache"};
  if (slot.head_dim % kernels::kv_granularity(type) != 0)
    return invalid("a " + std::string(to_string(type)) + " cache needs heads of a multiple of " +
                   std::to_string(kernels::kv_granularity(type)) + " numbers, this model's have " +
                   std::to_string(slot.head_dim) + (kernels::is_quantized_kv(type) ? "; use F16 or F32" : ""));
  const std::size_t head = kernels::kv_page_bytes(type, 1, slot.head_dim);
  if (head > most_bytes / static_cast<std::size_t>(slot.n_kv_heads)) return does_not_fit();
  return head * static_cast<std::size_t>(slot.n_kv_heads);
}

result<void> place_slot(kv_plan& plan, std::size_t index) {
  const kv_slot& slot = plan.layout.slots[index];
  const auto add = [](std::vector<kv_plan::place>& places, std::size_t slot_index, std::size_t& total,
                      std::size_t bytes) -> result<void> {
    if (bytes > most_bytes - total) return does_not_fit();
    places.push_back({slot_index, total});
    total += bytes;
    return {};
  };
  if (slot.what == kv_slot::kind::recurrent) {
    if (slot.state_floats <= 0 || static_cast<std::uint64_t>(slot.state_floats) > most_bytes / 2 / sizeof(float))
      return error{errc::invalid_argument, "a recurrent state must hold something and fit the address space",
                   "KV cache"};
    const std::size_t bytes = static_cast<std::size_t>(slot.state_floats) * sizeof(float);
    return add(plan.states, index, plan.state_bytes,
               (bytes + buffer::alignment - 1) / buffer::alignment * buffer::alignment);
  }
  if (slot.what == kv_slot::kind::none) return {};
  FLYWHEEL_TRY(const std::size_t bytes, bytes_of_page(slot, plan.type));
  auto group = std::find_if(plan.groups.begin(), plan.groups.end(),
                            [&](const kv_plan::group& g) { return g.window == slot.window; });
  if (group == plan.groups.end()) group = plan.groups.insert(group, kv_plan::group{slot.window, {}, 0});
  return add(group->places, index, group->block_bytes, bytes);
}

result<std::shared_ptr<const kv_plan>> plan_of(const kv_layout& layout, dtype type) {
  auto plan = std::make_shared<kv_plan>();
  plan->layout = layout;
  plan->type = type;
  for (std::size_t i = 0; i < layout.slots.size(); ++i) FLYWHEEL_CHECK(place_slot(*plan, i));
  return std::shared_ptr<const kv_plan>(std::move(plan));
}

}  // namespace

std::size_t kv_plan::group::first_seen(std::int64_t size) const noexcept {
  return window == 0 || size < window ? 0 : static_cast<std::size_t>(size - window + 1) / page_tokens;
}

kv_cache::kv_cache(std::shared_ptr<const kv_plan> plan, std::pmr::memory_resource* memory)
    : plan_(std::move(plan)),
      memory_(memory),
      lists_(plan_->groups.size()),
      pages_(plan_->layout.slots.size()),
      states_(pages_.size()),
      next_states_(pages_.size()) {}

result<kv_cache> kv_cache::create(const kv_layout& layout, dtype kv_type, std::pmr::memory_resource* memory) {
  return guarded([&]() -> result<kv_cache> {
    FLYWHEEL_TRY(auto plan, plan_of(layout, kv_type));
    return kv_cache(std::move(plan), memory);
  });
}

result<std::size_t> kv_cache::bytes_for(const kv_layout& layout, dtype kv_type, std::int64_t positions) {
  return guarded([&]() -> result<std::size_t> {
    FLYWHEEL_TRY(const auto plan, plan_of(layout, kv_type));
    if (positions <= 0) return std::size_t{0};
    std::size_t total = 2 * plan->state_bytes;
    for (const kv_plan::group& g : plan->groups) {
      const std::size_t blocks = blocks_for(positions), held = blocks - first_kept(g, positions);
      const std::size_t table = g.places.size() * sizeof(std::byte*);
      if (held > (most_bytes - total) / 2 / g.block_bytes || blocks > most_bytes / 8 / table)
        return error{errc::out_of_memory, "out of memory", {}};
      total += held * g.block_bytes;
      total += capacity_for(blocks) * table;
    }
    return total;
  });
}

std::size_t kv_cache::visit_blocks(function_ref<void(const void*, std::size_t)> each) const {
  std::size_t tables = 0;
  for (const block_ref* state : {&state_, &next_state_})
    if (*state) each(state->data(), plan_->state_bytes);
  for (std::size_t g = 0; g < lists_.size(); ++g) {
    for (const block_ref& b : lists_[g].blocks) each(b.data(), plan_->groups[g].block_bytes);
    tables += lists_[g].table.size() * sizeof(std::byte*);
  }
  return tables;
}

std::size_t kv_cache::bytes() const noexcept {
  std::size_t blocks = 0;
  const std::size_t tables = visit_blocks([&](const void*, std::size_t bytes) { blocks += bytes; });
  return blocks + tables;
}

result<kv_cache::block_ref> kv_cache::new_block(std::size_t bytes) const {
  // Zeroed: attention may load (and mask) rows that were never written, which must not be NaN; and states begin at 0.
  FLYWHEEL_TRY(buffer zeros, buffer::zeros(bytes, memory_));
  auto made = std::make_unique<block>();
  made->bytes = std::move(zeros);
  return block_ref(made.release());
}

/// Enters a block into its group's page tables.
void kv_cache::enter(std::size_t group, std::size_t index) noexcept {
  block_list& list = lists_[group];
  const auto& places = plan_->groups[group].places;
  for (std::size_t i = 0; i < places.size(); ++i)
    list.table[i * list.capacity + index] = list.at(index).data() + places[i].offset;
}

/// Enters a group's tables where layers find theirs.
void kv_cache::enter_tables(std::size_t group) noexcept {
  const block_list& list = lists_[group];
  const auto& places = plan_->groups[group].places;
  for (std::size_t i = 0; i < places.size(); ++i) pages_[places[i].slot] = list.table.data() + i * list.capacity;
}

void kv_cache::enter_states() noexcept {
  for (const kv_plan::place& p : plan_->states) {
    states_[p.slot] = state_ ? state_.data() + p.offset : nullptr;
    next_states_[p.slot] = next_state_ ? next_state_.data() + p.offset : nullptr;
  }
}

result<void> kv_cache::reserve(std::int64_t positions) {
  if (positions <= size_) return {};
  result<void> done = guarded([&]() -> result<void> {
    for (std::size_t g = 0; g < lists_.size(); ++g) FLYWHEEL_CHECK(grow(g, blocks_for(positions)));
    return grow_states();
  });
  if (!done) drop_reserved();
  return done;
}

result<void> kv_cache::grow(std::size_t group, std::size_t blocks) {
  block_list& list = lists_[group];
  const std::size_t block_bytes = plan_->groups[group].block_bytes;
  // A partly filled last page may be shared: it is about to be written to.
  if (size_ % kv_page_tokens != 0) {
    const std::size_t last = static_cast<std::size_t>(size_ / kv_page_tokens);
    if (!list.at(last).unique()) {
      FLYWHEEL_TRY(block_ref copy, new_block(block_bytes));
      std::memcpy(copy.data(), list.at(last).data(), block_bytes);
      list.blocks[last - list.first] = std::move(copy);
      enter(group, last);
    }
  }
  if (blocks > list.capacity) {
    const std::size_t places = plan_->groups[group].places.size();
    const std::size_t capacity = capacity_for(blocks);
    if (capacity > most_bytes / places) return error{errc::out_of_memory, "out of memory", {}};
    std::vector<std::byte*> table(places * capacity);
    for (std::size_t i = 0; i < places; ++i)
      std::copy_n(list.table.begin() + static_cast<std::ptrdiff_t>(i * list.capacity), list.capacity,
                  table.begin() + static_cast<std::ptrdiff_t>(i * capacity));
    list.table = std::move(table);
    list.capacity = capacity;
    enter_tables(group);
  }
  while (list.end() < blocks) {
    FLYWHEEL_TRY(block_ref fresh, new_block(block_bytes));
    list.blocks.push_back(std::move(fresh));
    enter(group, list.end() - 1);
  }
  return {};
}

result<void> kv_cache::grow_states() {
  if (plan_->states.empty()) return {};
  if (!state_) {
    FLYWHEEL_TRY(state_, new_block(plan_->state_bytes));
  }
  // The state before the last one may still be a fork's current one.
  if (!next_state_ || !next_state_.unique()) {
    FLYWHEEL_TRY(next_state_, new_block(plan_->state_bytes));
  }
  enter_states();
  return {};
}

void kv_cache::advance(std::int64_t positions) noexcept {
  size_ = positions;
  std::swap(state_, next_state_);
  enter_states();
  for (std::size_t g = 0; g < lists_.size(); ++g) {
    block_list& list = lists_[g];
    const std::size_t kept = first_kept(plan_->groups[g], size_);
    if (kept <= list.first) continue;
    list.blocks.erase(list.blocks.begin(), list.blocks.begin() + static_cast<std::ptrdiff_t>(kept - list.first));
    list.first = kept;
  }
}

bool kv_cache::can_truncate(std::int64_t positions) const noexcept {
  if (positions == size_ || positions == 0) return true;
  if (positions > size_ || !plan_->states.empty()) return false;
  for (std::size_t g = 0; g < lists_.size(); ++g)
    if (plan_->groups[g].first_seen(positions) < lists_[g].first) return false;
  return true;
}

void kv_cache::truncate(std::int64_t positions) noexcept {
  positions = std::min(size_, std::max<std::int64_t>(positions, 0));
  size_ = can_truncate(positions) ? positions : 0;
  drop_reserved();
}

/// Frees the blocks behind the last position, and what a sequence without positions does not need.
void kv_cache::drop_reserved() noexcept {
  const std::size_t needed = blocks_for(size_);
  for (block_list& list : lists_) {
    if (size_ == 0) list.first = 0;
    if (needed < list.end())
      list.blocks.erase(list.blocks.begin() + static_cast<std::ptrdiff_t>(needed - list.first), list.blocks.end());
  }
  if (size_ == 0) state_ = next_state_ = block_ref();
  enter_states();
}

result<kv_cache> kv_cache::fork() const {
  return guarded([&]() -> result<kv_cache> {
    kv_cache copy(plan_, memory_);
    const std::size_t filled = blocks_for(size_);
    for (std::size_t g = 0; g < lists_.size(); ++g) {
      const block_list& from = lists_[g];
      block_list& to = copy.lists_[g];
      to.first = from.first;
      to.capacity = from.capacity;
      to.table = from.table;
      to.blocks.assign(from.blocks.begin(), from.blocks.begin() + static_cast<std::ptrdiff_t>(filled - from.first));
      copy.enter_tables(g);
    }
    copy.size_ = size_;
    if (size_ > 0) copy.state_ = state_;
    copy.enter_states();
    return copy;
  });
}

std::size_t kv_cache::stored_bytes(std::int64_t positions) const noexcept {
  if (positions <= 0) return 0;
  std::size_t total = 0;
  for (const kv_plan::place& p : plan_->states)
    total += static_cast<std::size_t>(plan_->layout.slots[p.slot].state_floats) * sizeof(float);
  for (const kv_plan::group& g : plan_->groups)
    total +=
        (static_cast<std::size_t>(positions) - g.first_seen(positions) * page_tokens) * (g.block_bytes / page_tokens);
  return total;
}

/// Group by group: whole blocks, then the filled part of each line of the last one (see kernels/attention/page.hpp).
/// Then the states.
template <class F>
result<void> kv_cache::visit_pieces(F&& piece) const {
  if (size_ == 0) return {};
  const std::size_t full = static_cast<std::size_t>(size_) / page_tokens;
  const std::size_t rest = static_cast<std::size_t>(size_) % page_tokens;
  for (std::size_t g = 0; g < lists_.size(); ++g) {
    const kv_plan::group& group = plan_->groups[g];
    for (std::size_t i = group.first_seen(size_); i < full; ++i)
      FLYWHEEL_CHECK(piece(std::span(lists_[g].at(i).data(), group.block_bytes)));
    if (rest == 0) continue;
    std::byte* at = lists_[g].at(full).data();
    for (const kv_plan::place& p : group.places) {
      const kv_slot& slot = plan_->layout.slots[p.slot];
      const kernels::kv_head_lines keys = kernels::kv_key_lines(plan_->type, slot.head_dim);
      const kernels::kv_head_lines values = kernels::kv_value_lines(plan_->type, slot.head_dim);
      for (const kernels::kv_head_lines& half : {keys, values})
        for (std::int32_t head = 0; head < slot.n_kv_heads; ++head)
          for (const kernels::kv_lines& lines : {half.numbers, half.scales})
            for (std::size_t i = 0; i < lines.count; ++i, at += page_tokens * lines.position_bytes)
              FLYWHEEL_CHECK(piece(std::span(at, rest * lines.position_bytes)));
    }
  }
  for (const kv_plan::place& p : plan_->states)
    FLYWHEEL_CHECK(piece(std::span(
        state_.data() + p.offset, static_cast<std::size_t>(plan_->layout.slots[p.slot].state_floats) * sizeof(float))));
  return {};
}

result<void> kv_cache::visit(function_ref<result<void>(std::span<const std::byte>)> piece) const {
  return visit_pieces([&](std::span<std::byte> bytes) { return piece(bytes); });
}

result<void> kv_cache::restore(std::int64_t positions, function_ref<result<void>(std::span<std::byte>)> piece) {
  for (std::size_t g = 0; g < lists_.size(); ++g) lists_[g].first = plan_->groups[g].first_seen(positions);
  FLYWHEEL_CHECK(reserve(positions));
  advance(positions);
  return visit_pieces(piece);
}

}  // namespace flywheel::inline v0::detail
