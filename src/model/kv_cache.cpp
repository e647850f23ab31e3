#include "src/model/kv_cache.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "flywheel/detail/try.hpp"
#include "kernels/attention/page.hpp"

namespace flywheel::inline v0::detail {
namespace {

constexpr std::size_t page_tokens = static_cast<std::size_t>(kv_page_tokens);
constexpr std::size_t first_capacity = 8;  // blocks: 512 positions

std::size_t blocks_for(std::int64_t positions) noexcept {
  return (static_cast<std::size_t>(positions) + page_tokens - 1) / page_tokens;
}

/// The table doubles, so that appending blocks costs little.
std::size_t capacity_for(std::size_t blocks) noexcept {
  std::size_t capacity = first_capacity;
  while (capacity < blocks) capacity *= 2;
  return capacity;
}

result<std::size_t> bytes_of_block(const kv_layout& layout, dtype type) {
  const auto invalid = [](std::string message) {
    return error{errc::invalid_argument, std::move(message), "session_options::kv_type"};
  };
  if (kernels::kv_block_bytes(type) == 0)
    return invalid("the KV cache can be F16, F32, Q8_0 or Q4_0, not " + std::string(to_string(type)));
  for (const std::int32_t factor : {layout.n_layers, layout.n_kv_heads, layout.head_dim})
    if (factor <= 0) return error{errc::invalid_argument, "layers, heads and head size must be positive", "KV cache"};
  if (layout.head_dim % kernels::kv_granularity(type) != 0)
    return invalid("a " + std::string(to_string(type)) + " cache needs heads of a multiple of " +
                   std::to_string(kernels::kv_granularity(type)) + " numbers, this model's have " +
                   std::to_string(layout.head_dim) + (kernels::is_quantized_kv(type) ? "; use F16 or F32" : ""));
  std::size_t bytes = kernels::kv_page_bytes(type, 1, layout.head_dim);
  for (const std::int32_t factor : {layout.n_layers, layout.n_kv_heads}) {
    if (bytes > std::numeric_limits<std::size_t>::max() / 2 / static_cast<std::size_t>(factor))
      return error{errc::invalid_argument, "a page does not fit the address space", "KV cache"};
    bytes *= static_cast<std::size_t>(factor);
  }
  return bytes;
}

}  // namespace

result<kv_cache> kv_cache::create(const kv_layout& layout, dtype kv_type, std::pmr::memory_resource* memory) {
  FLYWHEEL_TRY(const std::size_t block_bytes, bytes_of_block(layout, kv_type));
  return kv_cache(layout, kv_type, block_bytes, memory);
}

result<std::size_t> kv_cache::bytes_for(const kv_layout& layout, dtype kv_type, std::int64_t positions) {
  FLYWHEEL_TRY(const std::size_t block_bytes, bytes_of_block(layout, kv_type));
  if (positions <= 0) return std::size_t{0};
  const std::size_t blocks = blocks_for(positions);
  const std::size_t table = static_cast<std::size_t>(layout.n_layers) * sizeof(std::byte*);
  const std::size_t all = std::numeric_limits<std::size_t>::max();
  if (blocks > all / 4 / block_bytes || blocks > all / 8 / table)
    return error{errc::out_of_memory, "out of memory", {}};
  return blocks * block_bytes + capacity_for(blocks) * table;
}

std::size_t kv_cache::bytes() const noexcept {
  return blocks_.size() * block_bytes_ + table_.size() * sizeof(std::byte*);
}

result<kv_cache::block_ref> kv_cache::new_block() const {
  // Zeroed: attention may load (and mask) rows that were never written, which must not be NaN.
  FLYWHEEL_TRY(buffer bytes, buffer::zeros(block_bytes_, memory_));
  auto made = std::make_unique<block>();
  made->bytes = std::move(bytes);
  return block_ref(made.release());
}

/// Enters a block into the page table.
void kv_cache::enter(std::size_t index) noexcept {
  const std::size_t page_bytes = block_bytes_ / static_cast<std::size_t>(layout_.n_layers);
  std::byte* page = blocks_[index].data();
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(layout_.n_layers); ++layer, page += page_bytes)
    table_[layer * capacity_ + index] = page;
}

result<void> kv_cache::reserve(std::int64_t positions) {
  if (positions <= size_) return {};
  const std::size_t before = blocks_.size();
  result<void> done = guarded([&] { return grow(blocks_for(positions)); });
  if (!done) blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(before), blocks_.end());
  return done;
}

result<void> kv_cache::grow(std::size_t blocks) {
  // A partly filled last page may be shared: it is about to be written to.
  if (size_ % kv_page_tokens != 0) {
    const std::size_t last = static_cast<std::size_t>(size_ / kv_page_tokens);
    if (!blocks_[last].unique()) {
      FLYWHEEL_TRY(block_ref copy, new_block());
      std::memcpy(copy.data(), blocks_[last].data(), block_bytes_);
      blocks_[last] = std::move(copy);
      enter(last);
    }
  }
  if (blocks <= blocks_.size()) return {};
  if (blocks > capacity_) {
    const std::size_t layers = static_cast<std::size_t>(layout_.n_layers);
    const std::size_t capacity = capacity_for(blocks);
    if (capacity > std::numeric_limits<std::size_t>::max() / 2 / layers)
      return error{errc::out_of_memory, "out of memory", {}};
    std::vector<std::byte*> table(layers * capacity);
    blocks_.reserve(capacity);
    for (std::size_t layer = 0; layer < layers; ++layer)
      std::copy_n(table_.begin() + static_cast<std::ptrdiff_t>(layer * capacity_), blocks_.size(),
                  table.begin() + static_cast<std::ptrdiff_t>(layer * capacity));
    table_ = std::move(table);
    capacity_ = capacity;
  }
  while (blocks_.size() < blocks) {
    FLYWHEEL_TRY(block_ref fresh, new_block());
    blocks_.push_back(std::move(fresh));
    enter(blocks_.size() - 1);
  }
  return {};
}

void kv_cache::truncate(std::int64_t positions) noexcept {
  size_ = std::min(size_, std::max<std::int64_t>(positions, 0));
  const std::size_t needed = blocks_for(size_);
  if (needed < blocks_.size()) blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(needed), blocks_.end());
}

result<kv_cache> kv_cache::fork() const {
  return guarded([&]() -> result<kv_cache> {
    kv_cache copy(layout_, type_, block_bytes_, memory_);
    const std::size_t filled = blocks_for(size_);
    copy.table_ = table_;
    copy.capacity_ = capacity_;
    copy.blocks_.reserve(capacity_);
    copy.blocks_.assign(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(filled));
    copy.size_ = size_;
    return copy;
  });
}

/// Whole blocks, then the filled part of each line of the last one: see kernels/attention/page.hpp.
template <class F>
result<void> kv_cache::visit_pieces(F&& piece) const {
  const std::size_t full = static_cast<std::size_t>(size_) / page_tokens;
  const std::size_t rest = static_cast<std::size_t>(size_) % page_tokens;
  for (std::size_t i = 0; i < full; ++i) FLYWHEEL_CHECK(piece(std::span(blocks_[i].data(), block_bytes_)));
  if (rest == 0) return {};
  const kernels::kv_head_lines keys = kernels::kv_key_lines(type_, layout_.head_dim);
  const kernels::kv_head_lines values = kernels::kv_value_lines(type_, layout_.head_dim);
  std::byte* at = blocks_[full].data();
  for (std::int32_t layer = 0; layer < layout_.n_layers; ++layer)
    for (const kernels::kv_head_lines& half : {keys, values})
      for (std::int32_t head = 0; head < layout_.n_kv_heads; ++head)
        for (const kernels::kv_lines& lines : {half.numbers, half.scales})
          for (std::size_t i = 0; i < lines.count; ++i, at += page_tokens * lines.position_bytes)
            FLYWHEEL_CHECK(piece(std::span(at, rest * lines.position_bytes)));
  return {};
}

result<void> kv_cache::visit(function_ref<result<void>(std::span<const std::byte>)> piece) const {
  return visit_pieces([&](std::span<std::byte> bytes) { return piece(bytes); });
}

result<void> kv_cache::visit_writable(function_ref<result<void>(std::span<std::byte>)> piece) {
  return visit_pieces([&](std::span<std::byte> bytes) { return piece(bytes); });
}

}  // namespace flywheel::inline v0::detail
