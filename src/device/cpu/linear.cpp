// linear: prepare the activations (norm, quantize), then multiply by the panels of all weights of the node.
//
// A few rows are prepared by every worker for itself, which costs less than a barrier; many rows are prepared together
// in a phase of their own. Either way the prepared bytes, and so the results, are the same.
//
// With adapters, the projections A x are made beside the preparation, all workers sharing them, and B (A x) is added to
// columns that have just been made: after bias and residual, before activation and gate.
#include <algorithm>
#include <utility>

#include "src/device/cpu/low_rank.hpp"
#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {
namespace {

using kernels::matmul_kernel;

constexpr std::int64_t redundant_floats = 16384;  ///< Up to so many activations, preparing alone beats a barrier.
constexpr std::int64_t decode_rows = 8;           ///< Up to so many rows, weights are read once: bandwidth rules.
constexpr std::int64_t block_rows = 96;
/// Whole tiles of every layout: 48 is a multiple of all tile heights up to 6, of 8, 12 and 16.
constexpr std::int64_t rows_per_task = 48;

struct product {
  const packed_weight* weight = nullptr;
  const float* bias = nullptr;
  operand out;
  std::uint32_t slot = 0;  ///< graph::weight_info::slot
  std::size_t layout = 0;  ///< Index into layouts_.
};

class linear_step final : public step {
 public:
  linear_step(const compile_context& c, const graph::node& n)
      : kernels_(c.kernels), x_(c.value(n.inputs[0])), adapted_(c.kernels, x_) {
    const auto& a = n.as<graph::linear_attributes>();
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
      p.slot = c.g.weight_of(n.inputs[a.weight_input(i)])->slot;
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
    for (const product& p : products_) adapted_.append(p.slot);
  }

  std::size_t shared_bytes(std::int64_t max_tokens, std::int64_t max_outputs) const override {
    const std::int64_t rows = x_.outputs ? max_outputs : max_tokens;
    return alone(rows) ? 0 : preparation_bytes(rows);
  }

  std::size_t own_bytes(std::int64_t max_tokens, std::int64_t max_outputs) const override {
    const std::int64_t rows = x_.outputs ? max_outputs : max_tokens;
    const std::int64_t few = std::min(rows, std::max<std::int64_t>(1, redundant_floats / x_.cols));
    return preparation_bytes(few) + columns_bytes();
  }

  int phases(const run_state& s) const override {
    const std::int64_t rows = s.rows(x_);
    return alone(rows) ? (adapted_.any(s) ? 2 : 1) : (projects_apart(s, rows) ? 3 : 2);
  }

  void run(const worker_state& w, int phase) const override {
    const std::int64_t rows = w.run.rows(x_);
    if (rows == 0) return;
    if (alone(rows)) {
      if (w.run.stopping()) return;
      std::byte* area = w.own() + columns_bytes();
      const bool adapted = adapted_.any(w.run);
      if (phase == 0 && adapted)  // on its way while the rows are prepared
        w.split(adapted_.projections(w.run),
                [&](std::int64_t begin, std::int64_t end) { adapted_.fetch(w.run, begin, end); });
      if (phase == 0) prepare(w.run, area, 0, rows, rows);
      if (phase == 0 && adapted)
        project(w, area);
      else
        multiply(w, area, rows);
    } else if (phase == 0) {
      const bool here = adapted_.any(w.run) && !projects_apart(w.run, rows);
      w.take((rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t i) {
        const std::int64_t begin = i * rows_per_task, end = std::min(rows, begin + rows_per_task);
        prepare(w.run, w.run.shared, begin, end, rows);
        if (here) adapted_.project_rows(w.run, input(w.run, w.run.shared), begin, end);  // while they are in the cache
      });
    } else if (phase == 1 && projects_apart(w.run, rows)) {
      project(w, w.run.shared);
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
  /// Columns that are not yet what they will be when they are stored.
  [[nodiscard]] std::size_t columns_bytes() const {
    return static_cast<std::size_t>((glu_                ? 2
                                     : residual_.given() ? 1
                                                         : 0) *
                                    block_rows * block_columns) *
           sizeof(float);
  }
  /// Whether many rows that are prepared in fewer tasks than there are workers are projected in a phase of their own.
  [[nodiscard]] bool projects_apart(const run_state& s, std::int64_t rows) const {
    return rows <= rows_per_task * (static_cast<std::int64_t>(s.workers) - 1) && adapted_.any(s);
  }
  /// What the weights multiply, in f32.
  [[nodiscard]] const float* input(const run_state& s, const std::byte* area) const {
    return normed_ ? reinterpret_cast<const float*>(area) : s.at(x_);
  }
  void project(const worker_state& w, const std::byte* area) const {
    w.split(adapted_.projections(w.run),
            [&](std::int64_t begin, std::int64_t end) { adapted_.project(w.run, input(w.run, area), begin, end); });
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
    const bool adapted = adapted_.any(w.run), few = rows <= decode_rows;
    if (!glu_) {
      // The residual may lie where the sums will: what is scaled before it is added waits elsewhere.
      const bool scaled = adapted && adapted_.gains(w.run, i), apart = scaled && residual_.given();
      const std::int64_t wide = apart ? panels_per_block(i) : panel_end - panel;
      for (std::int64_t from = panel; from < panel_end; from += wide) {
        const std::int64_t to = std::min(panel_end, from + wide);
        const std::int64_t first = column(p, from), cols = std::min(p.weight->n, column(p, to)) - first;
        const std::int64_t at = row * p.out.cols + first;
        float* y = w.run.at(p.out) + at;
        const float* residual = residual_.given() ? w.run.at(residual_) + at : nullptr;
        float* sums = apart ? reinterpret_cast<float*>(w.own()) : y;
        const std::int64_t stride = apart ? block_columns : p.out.cols;
        if (adapted && few) adapted_.fetch_columns(w.run, i, row, row_end, first, cols);
        call(area, rows, p, row, row_end, from, to, sums, stride, apart ? nullptr : residual);
        if (scaled) adapted_.scale(w.run, i, p.bias, row, row_end, first, cols, sums, stride);
        if (apart)
          for (std::int64_t r = 0; r < row_end - row; ++r)
            kernels_.add(sums + r * stride, residual + r * p.out.cols, cols, y + r * p.out.cols);
        if (adapted) adapted_.add(w.run, i, row, row_end, first, cols, y, p.out.cols);
        if (act_)  // while the block is in the cache
          for (std::int64_t r = 0; r < row_end - row; ++r)
            kernels_.activate(*act_, y + r * p.out.cols, cols, y + r * p.out.cols);
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
      if (adapted && few)
        for (const std::size_t which : {i, std::size_t{1}})
          adapted_.fetch_columns(w.run, which, row, row_end, first, cols);
      call(area, rows, p, row, row_end, from, to, firsts, block_columns, nullptr);
      call(area, rows, second, row, row_end, first / narrow, (first + cols + narrow - 1) / narrow, seconds,
           block_columns, nullptr);
      for (const auto& [which, sums] : {std::pair{i, firsts}, std::pair{std::size_t{1}, seconds}}) {
        if (!adapted) break;
        adapted_.scale(w.run, which, products_[which].bias, row, row_end, first, cols, sums, block_columns);
        adapted_.add(w.run, which, row, row_end, first, cols, sums, block_columns);
      }
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
  adapted_products adapted_;
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
