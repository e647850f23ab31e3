#include "flywheel/graph/plan.hpp"

#include <algorithm>
#include <limits>

namespace flywheel::inline v0::graph {
namespace {

constexpr std::size_t alignment = 64;

/// A stretch of the arena: one value, or several that write over each other one after the other.
struct block {
  std::size_t bytes = 0;
  std::size_t first = 0;  ///< First node that it is alive at,
  std::size_t last = 0;   ///< and the last.
  std::size_t offset = 0;
};

/// The input that the node's output may write over: a tap's is the same numbers, whoever else reads them later.
value written_over(const node& n) {
  if (n.kind == op::tap) return n.inputs[0];
  if (n.kind == op::linear && n.as<linear_attributes>().residual)
    return n.inputs[n.as<linear_attributes>().residual_input()];
  if (n.kind == op::moe_ffn) return n.inputs[moe_attributes::residual];
  return {};
}

}  // namespace

result<memory_plan> plan_memory(const graph& g, std::int64_t max_tokens, std::int64_t max_outputs) {
  constexpr std::int64_t limit = std::int64_t{1} << 24;
  if (max_tokens < 1 || max_outputs < 1 || max_tokens > limit || max_outputs > limit)
    return error{errc::invalid_argument, "a plan holds between 1 and 16777216 rows", "plan_memory"};

  std::vector<std::size_t> last_use(g.values.size(), 0);
  for (std::size_t i = 0; i < g.nodes.size(); ++i)
    for (value v : g.nodes[i].inputs)
      if (v.valid()) last_use[v.index] = i;
  std::vector<bool> outside(g.values.size(), false);
  for (value v : g.outputs) outside[v.index] = true;

  constexpr auto unplaced = std::numeric_limits<std::size_t>::max();
  std::vector<std::size_t> block_of(g.values.size(), unplaced);
  std::vector<block> blocks;
  const auto alone = [&](const node& n, value v) {  // no other input of the node lies there
    return std::count_if(n.inputs.begin(), n.inputs.end(),
                         [&](value other) { return other.valid() && block_of[other.index] == block_of[v.index]; }) == 1;
  };
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    const node& n = g.nodes[i];
    if (is_source(n.kind)) continue;
    for (value v : n.outputs) {
      if (outside[v.index]) continue;
      const value_info& info = g.at(v);
      const auto max_rows = static_cast<std::size_t>(info.rows == row_kind::outputs ? max_outputs : max_tokens);
      const std::size_t bytes = max_rows * static_cast<std::size_t>(info.cols) * sizeof(float);
      if (const value under = written_over(n);
          under.valid() && block_of[under.index] != unplaced &&
          (n.kind == op::tap || (blocks[block_of[under.index]].last == i && alone(n, under)))) {
        block_of[v.index] = block_of[under.index];
      } else {
        block_of[v.index] = blocks.size();
        blocks.push_back({(bytes + alignment - 1) / alignment * alignment, i, i, 0});
      }
      block& b = blocks[block_of[v.index]];
      b.last = std::max({b.last, i, last_use[v.index]});
    }
  }

  std::vector<std::size_t> order(blocks.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return blocks[a].bytes > blocks[b].bytes; });
  std::vector<std::size_t> placed;  // by offset
  memory_plan plan;
  for (std::size_t i : order) {
    block& b = blocks[i];
    std::size_t offset = 0;
    for (std::size_t p : placed) {
      const block& other = blocks[p];
      if (other.last < b.first || b.last < other.first) continue;
      if (offset + b.bytes <= other.offset) break;
      offset = std::max(offset, other.offset + other.bytes);
    }
    b.offset = offset;
    plan.arena_bytes = std::max(plan.arena_bytes, offset + b.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](std::size_t x, std::size_t y) { return blocks[x].offset < blocks[y].offset; }),
                  i);
  }
  plan.offsets.assign(g.values.size(), memory_plan::none);
  for (std::size_t v = 0; v < g.values.size(); ++v)
    if (block_of[v] != unplaced) plan.offsets[v] = blocks[block_of[v]].offset;
  plan.max_tokens = max_tokens;
  plan.max_outputs = max_outputs;
  return plan;
}

}  // namespace flywheel::inline v0::graph
