// linear: prepare the activations (norm, quantize), then multiply by the panels of all weights of the node.
//
// A few rows are prepared by every worker for itself, which costs less than a barrier; many rows are prepared together
// in a phase of their own. Either way the prepared bytes, and so the results, are the same.
#include <algorithm>

#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {
namespace {

using kernels::matmul_kernel;

constexpr std::int64_t redundant_floats = 16384;  ///< Up to so many activations, preparing alone beats a barrier.
constexpr std::int64_t decode_rows = 8;           ///< Up to so many rows, weights are read once: bandwidth rules.
constexpr std::int64_t block_rows = 96;

struct product {
  const packed_weight* weight = nullptr;
  const float* bias = nullptr;
  operand out;
  std::size_t layout = 0;  ///< Index into layouts_.
};

class linear_step final : public step {
 public:
  linear_step(const compile_context& c, const graph::node& n) : kernels_(c.kernels) {
    const auto& a = n.as<graph::linear_attributes>();
    x_ = c.value(n.inputs[0]);
    glu_ = a.glu;
    act_ = a.act;
    if (a.norm) {
      normed_ = true;
      norm_ = c.vector(n.inputs[a.norm_input()]);
      eps_ = a.norm->eps;
    }
    if (a.residual) residual_ = c.value(n.inputs[a.residual_input()]);
    for (std::size_t i = 0; i < a.weights; ++i) {
      product p;
      p.weight = &c.matrix(n.inputs[a.weight_input(i)]);
      if (a.biases) p.bias = c.vector(n.inputs[a.bias_input(i)]);
      p.out = c.value(n.outputs[a.glu ? 0 : i]);
      const auto same = [&](const matmul_kernel* k) { return k->prepared == p.weight->kernel->prepared; };
      const auto found = std::find_if(layouts_.begin(), layouts_.end(), same);
      p.layout = static_cast<std::size_t>(found - layouts_.begin());
      if (found == layouts_.end()) layouts_.push_back(p.weight->kernel);
      products_.push_back(p);
    }
    // With glu, gate and up are computed for the same columns: the product with the wider panels decides the tiles.
    tiled_ = glu_ ? 1 : products_.size();
    up_first_ = glu_ && products_[1].weight->kernel->panel_cols > products_[0].weight->kernel->panel_cols;
    if (up_first_) std::swap(products_[0], products_[1]);
  }

  std::size_t shared_bytes(std::int64_t max_tokens, std::int64_t max_outputs) const override {
    const std::int64_t rows = x_.outputs ? max_outputs : max_tokens;
    return alone(rows) ? 0 : preparation_bytes(rows);
  }

  std::size_t own_bytes(std::int64_t max_tokens, std::int64_t max_outputs) const override {
    const std::int64_t rows = x_.outputs ? max_outputs : max_tokens;
    const std::int64_t few = std::min(rows, std::max<std::int64_t>(1, redundant_floats / x_.cols));
    return preparation_bytes(few) + glu_bytes();
  }

  int phases(const run_state& s) const override { return alone(s.rows(x_)) ? 1 : 2; }

  void run(const worker_state& w, int phase) const override {
    const std::int64_t rows = w.run.rows(x_);
    if (rows == 0) return;
    if (alone(rows)) {
      if (w.run.stopping()) return;
      std::byte* area = w.own() + glu_bytes();
      prepare(w.run, area, 0, rows, rows);
      multiply(w, area, rows);
    } else if (phase == 0) {
      // Whole tiles of every layout: 48 is a multiple of all tile heights up to 6, of 8, 12 and 16.
      constexpr std::int64_t rows_per_task = 48;
      w.take((rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t i) {
        prepare(w.run, w.run.shared, i * rows_per_task, std::min(rows, (i + 1) * rows_per_task), rows);
      });
    } else {
      multiply(w, w.run.shared, rows);
    }
  }

 private:
  [[nodiscard]] bool alone(std::int64_t rows) const { return rows == 1 || rows * x_.cols <= redundant_floats; }
  [[nodiscard]] std::size_t normed_bytes(std::int64_t rows) const {
    return normed_ ? align64(static_cast<std::size_t>(rows * x_.cols) * sizeof(float)) : 0;
  }
  [[nodiscard]] std::size_t layout_bytes(std::size_t layout, std::int64_t rows) const {
    return align64(layouts_[layout]->prepared_bytes(rows, x_.cols));
  }
  [[nodiscard]] std::size_t preparation_bytes(std::int64_t rows) const {
    std::size_t bytes = normed_bytes(rows);
    for (std::size_t i = 0; i < layouts_.size(); ++i) bytes += layout_bytes(i, rows);
    return bytes;
  }
  [[nodiscard]] std::size_t glu_bytes() const {
    return glu_ ? static_cast<std::size_t>(block_rows * 2 * block_columns) * sizeof(float) : 0;
  }

  /// Rows [begin, end) of `rows`: normed if asked for, then in every layout. `area` holds the normed rows first.
  void prepare(const run_state& s, std::byte* area, std::int64_t begin, std::int64_t end, std::int64_t rows) const {
    const float* x = s.at(x_);
    if (normed_) {
      auto* normed = reinterpret_cast<float*>(area);
      for (std::int64_t r = begin; r < end; ++r)
        kernels_.rms_norm(x + r * x_.cols, norm_, eps_, x_.cols, normed + r * x_.cols);
      x = normed;
    }
    std::byte* out = area + normed_bytes(rows);
    for (std::size_t i = 0; i < layouts_.size(); ++i) {
      layouts_[i]->prepare(x, x_.cols, begin, end, x_.cols, out);
      out += layout_bytes(i, rows);
    }
  }

  [[nodiscard]] const std::byte* prepared(const std::byte* area, std::size_t layout, std::int64_t rows) const {
    const std::byte* at = area + normed_bytes(rows);
    for (std::size_t i = 0; i < layout; ++i) at += layout_bytes(i, rows);
    return at;
  }

  void multiply(const worker_state& w, const std::byte* area, std::int64_t rows) const {
    if (rows <= decode_rows) {
      std::int64_t all = 0;
      for (std::size_t i = 0; i < tiled_; ++i) all += products_[i].weight->panels();
      w.split(all, [&](std::int64_t begin, std::int64_t end) {
        for (std::size_t i = 0; i < tiled_; ++i) {
          const std::int64_t panels = products_[i].weight->panels();
          if (begin < panels && end > 0)
            panels_of(w, area, rows, i, 0, rows, std::max<std::int64_t>(0, begin), std::min(end, panels));
          begin -= panels;
          end -= panels;
        }
      });
      return;
    }
    // Tasks run over row blocks first, so that workers share a block of weights while it is in the cache.
    std::int64_t tasks = 0;
    for (std::size_t i = 0; i < tiled_; ++i) tasks += row_blocks(i, rows) * column_blocks(i);
    w.take(tasks, [&](std::int64_t task) {
      std::size_t i = 0;
      while (task >= row_blocks(i, rows) * column_blocks(i)) {
        task -= row_blocks(i, rows) * column_blocks(i);
        ++i;
      }
      const std::int64_t height = block_height(i);
      const std::int64_t row = task % row_blocks(i, rows) * height;
      const std::int64_t wide = panels_per_block(i);
      const std::int64_t panel = task / row_blocks(i, rows) * wide;
      panels_of(w, area, rows, i, row, std::min(rows, row + height), panel,
                std::min(products_[i].weight->panels(), panel + wide));
    });
  }

  [[nodiscard]] std::int64_t block_height(std::size_t i) const {
    const std::int64_t tile = products_[i].weight->kernel->prepared.tile_rows;
    return std::max(tile, block_rows / tile * tile);
  }
  [[nodiscard]] std::int64_t row_blocks(std::size_t i, std::int64_t rows) const {
    return (rows + block_height(i) - 1) / block_height(i);
  }
  [[nodiscard]] std::int64_t panels_per_block(std::size_t i) const {
    return std::max<std::int64_t>(1, block_columns / products_[i].weight->kernel->panel_cols);
  }
  [[nodiscard]] std::int64_t column_blocks(std::size_t i) const {
    return (products_[i].weight->panels() + panels_per_block(i) - 1) / panels_per_block(i);
  }

  /// Rows [row, row_end) x panels [panel, panel_end) of product i (with glu: of gate and up together).
  void panels_of(const worker_state& w, const std::byte* area, std::int64_t rows, std::size_t i, std::int64_t row,
                 std::int64_t row_end, std::int64_t panel, std::int64_t panel_end) const {
    const product& p = products_[i];
    if (!glu_) {
      float* y = w.run.at(p.out);
      const float* residual = residual_.given() ? w.run.at(residual_) : nullptr;
      call(area, rows, p, row, row_end, panel, panel_end, y + row * p.out.cols + column(p, panel), p.out.cols,
           residual ? residual + row * p.out.cols + column(p, panel) : nullptr);
      if (act_) {  // while the block is in the cache
        const std::int64_t first = column(p, panel), cols = std::min(p.weight->n, column(p, panel_end)) - first;
        for (std::int64_t r = row; r < row_end; ++r)
          kernels_.activate(*act_, y + r * p.out.cols + first, cols, y + r * p.out.cols + first);
      }
      return;
    }
    const product& second = products_[1];
    const std::int64_t narrow = second.weight->kernel->panel_cols;
    auto* firsts = reinterpret_cast<float*>(w.own());
    float* seconds = firsts + block_rows * block_columns;
    const std::int64_t wide = panels_per_block(0);
    for (std::int64_t from = panel; from < panel_end; from += wide) {
      const std::int64_t to = std::min(panel_end, from + wide);
      const std::int64_t first = column(p, from), cols = std::min(p.weight->n, column(p, to)) - first;
      call(area, rows, p, row, row_end, from, to, firsts, block_columns, nullptr);
      call(area, rows, second, row, row_end, first / narrow, (first + cols + narrow - 1) / narrow, seconds,
           block_columns, nullptr);
      for (std::int64_t r = row; r < row_end; ++r) {
        float* y = w.run.at(p.out) + r * p.out.cols + first;
        const std::int64_t at = (r - row) * block_columns;
        kernels_.glu(*glu_, (up_first_ ? seconds : firsts) + at, (up_first_ ? firsts : seconds) + at, cols, y);
        if (residual_.given()) kernels_.add(y, w.run.at(residual_) + r * p.out.cols + first, cols, y);
      }
    }
  }

  [[nodiscard]] static std::int64_t column(const product& p, std::int64_t panel) {
    return panel * p.weight->kernel->panel_cols;
  }

  void call(const std::byte* area, std::int64_t rows, const product& p, std::int64_t row, std::int64_t row_end,
            std::int64_t panel, std::int64_t panel_end, float* y, std::int64_t y_stride, const float* residual) const {
    kernels::matmul_args args;
    args.prepared = prepared(area, p.layout, rows);
    args.row_begin = row;
    args.row_end = row_end;
    args.panels = p.weight->data + static_cast<std::size_t>(panel) * p.weight->panel_bytes;
    args.k = p.weight->k;
    args.n = std::min(p.weight->n, column(p, panel_end)) - column(p, panel);
    args.y = y;
    args.y_stride = y_stride;
    args.epilogue.bias = p.bias ? p.bias + column(p, panel) : nullptr;
    args.epilogue.residual = residual;
    args.epilogue.residual_stride = p.out.cols;
    p.weight->kernel->run(args);
  }

  const kernels::kernel_set& kernels_;
  operand x_, residual_;
  bool normed_ = false;  ///< Not the same as norm_: sizes are asked for before weights are there.
  const float* norm_ = nullptr;
  float eps_ = 0;
  std::optional<activation> glu_, act_;
  std::vector<product> products_;
  std::vector<const matmul_kernel*> layouts_;
  std::size_t tiled_ = 0;  ///< How many products are cut into tiles.
  bool up_first_ = false;  ///< glu: products_ holds up before gate.
};

}  // namespace

std::unique_ptr<step> make_linear(const compile_context& c, const graph::node& n) {
  return std::make_unique<linear_step>(c, n);
}

}  // namespace flywheel::inline v0::device
