// attention of encoders: every token of a slice sees exactly the tokens of its slice, and nothing outlives the step. A
// task stores the keys and values of one slice and head in pages of the worker's own, then attends a block of tokens to
// them: no barrier in between, and memory for one head of one slice per worker.
//
// The kernels know causal attention. To them, all tokens of a block are heads of one token, the slice's last, which
// sees all positions; copying queries and results to and from that order costs little beside the products.
#include <algorithm>
#include <cstring>

#include "src/device/cpu/head_blocks.hpp"

namespace flywheel::inline v0::device {
namespace {

/// Tokens per task: storing the slice once more for each of them costs little beside attending it.
constexpr std::int64_t block_queries = 256;
constexpr dtype page_type = dtype::f32;

class bidirectional_attention_step final : public step {
 public:
  bidirectional_attention_step(const compile_context& c, const graph::node& n)
      : kernels_(c.kernels),
        a_(n.as<graph::attention_attributes>()),
        q_(c.value(n.inputs[in::q])),
        k_(c.value(n.inputs[in::k])),
        v_(c.value(n.inputs[in::v])),
        out_(c.value(n.outputs[0])) {
    if (a_.rope) table_ = c.rope(*a_.rope, n.inputs[in::rope_factors], n.inputs[in::long_rope_factors]);
  }

  std::size_t own_bytes(std::int64_t max_tokens, std::int64_t /*max_outputs*/) const override {
    return layout_of(max_tokens).total;
  }

  void run(const worker_state& w, int /*phase*/) const override {
    const layout where = layout_of(w.run.n_tokens);
    const head_blocks blocks{a_.n_kv_heads, block_queries};
    w.take(blocks.count(w.run), [&](std::int64_t task) {
      const head_block b = blocks.at(w.run, task);
      store(w, where, b.first_row, b.slice->n_tokens, b.head);
      attend(w, where, b.first_row, b.slice->n_tokens, b.head, b.begin, b.end);
    });
  }

 private:
  using in = graph::attention_attributes;
  /// Offsets in a worker's scratch.
  struct layout {
    std::size_t table = 0;  ///< Pointers to the pages.
    std::size_t pages = 0;
    std::size_t keys = 0;     ///< [kv_page_tokens, head_dim]: a page's keys, rotated.
    std::size_t queries = 0;  ///< [block_queries, group, head_dim]
    std::size_t results = 0;  ///< The same.
    std::size_t scratch = 0;  ///< Of the kernel.
    std::size_t total = 0;
  };

  [[nodiscard]] std::int64_t group() const { return a_.n_heads / a_.n_kv_heads; }
  [[nodiscard]] std::size_t page_bytes() const { return kernels::kv_page_bytes(page_type, 1, a_.head_dim); }

  [[nodiscard]] layout layout_of(std::int64_t tokens) const {
    const auto pages = static_cast<std::size_t>((tokens + kv_page_tokens - 1) / kv_page_tokens);
    const std::int64_t rows = std::min(tokens, block_queries) * group();
    const auto floats = [&](std::int64_t n) { return align64(static_cast<std::size_t>(n * a_.head_dim) * 4); };
    layout l;
    l.pages = l.table + align64(pages * sizeof(std::byte*));
    l.keys = l.pages + align64(pages * page_bytes());
    l.queries = l.keys + floats(kv_page_tokens);
    l.results = l.queries + floats(rows);
    l.scratch = l.results + floats(rows);
    l.total = l.scratch + align64(kernels_.attention_scratch(attention_args(tokens, rows)) * sizeof(float));
    return l;
  }

  /// `rows` heads of the token at the last of `tokens` positions.
  [[nodiscard]] kernels::attention_args attention_args(std::int64_t tokens, std::int64_t rows) const {
    kernels::attention_args args;
    args.q_stride = args.out_stride = rows * a_.head_dim;
    args.kv_type = page_type;
    args.n_heads = rows;
    args.n_kv_heads = 1;
    args.head_dim = a_.head_dim;
    args.first_position = tokens - 1;
    args.scale = a_.scale;
    args.softcap = a_.softcap;
    return args;
  }

  void rotate(const run_state& s, float* x, std::int64_t heads, std::int64_t token) const {
    if (!table_) return;
    const float* cos = table_->row(s, token);
    kernels_.rope(x, heads, a_.head_dim, a_.rope->n_rot, cos, cos + a_.rope->n_rot / 2, a_.rope->pairs);
  }

  /// Keys and values of tokens [row, row + tokens) of the chunk, page by page.
  void store(const worker_state& w, const layout& where, std::int64_t row, std::int64_t tokens,
             std::int64_t head) const {
    const std::int64_t d = a_.head_dim;
    const auto head_bytes = static_cast<std::size_t>(d) * sizeof(float);
    auto** const table = reinterpret_cast<std::byte**>(w.own() + where.table);
    auto* const keys = reinterpret_cast<float*>(w.own() + where.keys);
    for (std::int64_t first = 0; first < tokens; first += kv_page_tokens) {
      const std::int64_t page = first / kv_page_tokens;
      table[page] = w.own() + where.pages + static_cast<std::size_t>(page) * page_bytes();
      kernels::store_kv_args args;
      args.n_tokens = std::min(kv_page_tokens, tokens - first);
      for (std::int64_t t = 0; t < args.n_tokens; ++t) {
        const std::int64_t at = row + first + t;
        std::memcpy(keys + t * d, w.run.at(k_) + at * k_.cols + head * d, head_bytes);
        rotate(w.run, keys + t * d, 1, at);
      }
      args.k = keys;
      args.k_stride = d;
      args.v = w.run.at(v_) + (row + first) * v_.cols + head * d;
      args.v_stride = v_.cols;
      args.kv_pages = table;
      args.kv_type = page_type;
      args.n_kv_heads = 1;
      args.head_dim = d;
      args.first_position = first;
      kernels_.store_kv(args, 0);
    }
  }

  /// Tokens [begin, end) of the slice at `row`, all heads of the group.
  void attend(const worker_state& w, const layout& where, std::int64_t row, std::int64_t tokens, std::int64_t head,
              std::int64_t begin, std::int64_t end) const {
    const std::int64_t width = group() * a_.head_dim;
    const auto width_bytes = static_cast<std::size_t>(width) * sizeof(float);
    auto* const queries = reinterpret_cast<float*>(w.own() + where.queries);
    auto* const results = reinterpret_cast<float*>(w.own() + where.results);
    for (std::int64_t t = begin; t < end; ++t) {
      float* const q = queries + (t - begin) * width;
      std::memcpy(q, w.run.at(q_) + (row + t) * q_.cols + head * width, width_bytes);
      rotate(w.run, q, group(), row + t);
    }
    kernels::attention_args args = attention_args(tokens, (end - begin) * group());
    args.q = queries;
    args.out = results;
    args.kv_pages = reinterpret_cast<std::byte**>(w.own() + where.table);
    kernels_.attention(args, 0, 0, 1, reinterpret_cast<float*>(w.own() + where.scratch));
    for (std::int64_t t = begin; t < end; ++t)
      std::memcpy(w.run.at(out_) + (row + t) * out_.cols + head * width, results + (t - begin) * width, width_bytes);
  }

  const kernels::kernel_set& kernels_;
  graph::attention_attributes a_;
  operand q_, k_, v_, out_;
  std::optional<rope_table> table_;
};

}  // namespace

std::unique_ptr<step> make_bidirectional_attention(const compile_context& c, const graph::node& n) {
  return std::make_unique<bidirectional_attention_step>(c, n);
}

}  // namespace flywheel::inline v0::device
