// What to compute: nodes in static single assignment form, in execution order, over values whose only variable extent
// is the number of rows (tokens of the chunk, or outputs wanted of it).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/core/tensor.hpp"
#include "flywheel/graph/attributes.hpp"

namespace flywheel::inline v0::graph {

enum class op : std::uint8_t {
#define FLYWHEEL_OP(name, attribute_struct) name,
#include "flywheel/graph/ops.inc"
#undef FLYWHEEL_OP
};
[[nodiscard]] FLYWHEEL_API std::string_view to_string(op kind) noexcept;
/// Whether a node of this kind computes nothing: it names what the caller or the model file gives.
[[nodiscard]] constexpr bool is_source(op kind) noexcept {
  return kind == op::weight || kind == op::token_ids || kind == op::positions || kind == op::token_types;
}

/// A value of a graph: the index into graph::values. Invalid means "not given".
struct value {
  std::uint32_t index = ~std::uint32_t{0};
  [[nodiscard]] constexpr bool valid() const noexcept { return index != ~std::uint32_t{0}; }
  friend constexpr bool operator==(value, value) = default;
};

/// What the number of rows is.
enum class row_kind : std::uint8_t {
  fixed,    ///< A weight: its weight_info says it all.
  tokens,   ///< One per token of the chunk.
  outputs,  ///< One per wanted output.
};

struct value_info {
  dtype type = dtype::f32;
  row_kind rows = row_kind::tokens;
  std::int64_t cols = 0;       ///< Elements per row.
  std::uint32_t producer = 0;  ///< Index of the node that makes it.
};

/// A tensor of the model file that the graph uses, or some of its rows: `dims` are the extents of what is used.
struct weight_info {
  std::string name;
  dtype type = dtype::f32;
  shape dims;
  std::int64_t first_row = 0;  ///< Of the used rows (of every matrix, when there are several).
  std::uint32_t slot = 0;      ///< The same for the same rows in all graphs of a loaded model, and for no others.
  [[nodiscard]] bool same_rows(const weight_info& other) const noexcept {
    return name == other.name && first_row == other.first_row && dims == other.dims;
  }
};

struct node {
  op kind = op::token_ids;
  std::vector<value> inputs;
  std::vector<value> outputs;
  op_attributes attributes;

  /// The attributes as the operation's own struct; the kind decides which.
  template <class A>
  [[nodiscard]] const A& as() const noexcept {
    return *std::get_if<A>(&attributes);
  }
  template <class A>
  [[nodiscard]] A& as() noexcept {
    return *std::get_if<A>(&attributes);
  }
};

/// Plain data; a copy is independent. Rewrites are functions graph -> graph.
struct graph {
  std::vector<node> nodes;  ///< In an order in which every input is produced before it is used.
  std::vector<value_info> values;
  std::vector<weight_info> weights;
  std::vector<value> outputs;  ///< Results of the whole graph.

  [[nodiscard]] const value_info& at(value v) const noexcept { return values[v.index]; }
  /// The weight behind a value that a weight node produced; null for others and for invalid values.
  [[nodiscard]] FLYWHEEL_API const weight_info* weight_of(value v) const noexcept;
  /// How many node inputs and graph outputs name each value.
  [[nodiscard]] FLYWHEEL_API std::vector<std::uint32_t> use_counts() const;
  /// One line per node, for people.
  [[nodiscard]] FLYWHEEL_API std::string to_string() const;
};

/// Checks a node's inputs and computes the facts of its outputs (producer not set). Errors: invalid_argument naming the
/// operation and the extents.
[[nodiscard]] FLYWHEEL_API result<std::vector<value_info>> infer(const graph& g, const node& n);

/// Checks a whole graph: order, indices, extents.
[[nodiscard]] FLYWHEEL_API result<void> validate(const graph& g);

}  // namespace flywheel::inline v0::graph
