// Operations that treat rows independently, and the table of rotary angles.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/device/cpu/low_rank.hpp"
#include "src/device/cpu/program.hpp"

namespace flywheel::inline v0::device {
namespace {

/// A step whose work is F(run state, row) for every row of its output.
template <class F>
class rowwise_step final : public step {
 public:
  rowwise_step(operand out, F row) : out_(out), row_(std::move(row)) {}
  void run(const worker_state& w, int /*phase*/) const override {
    w.split(w.run.rows(out_), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) row_(w.run, r);
    });
  }

 private:
  operand out_;
  F row_;
};

template <class F>
std::unique_ptr<step> rowwise(operand out, F row) {
  return std::make_unique<rowwise_step<F>>(out, std::move(row));
}

/// Calls f(slice, row, position) for rows [begin, end) of the chunk.
template <class F>
void for_positions(const run_state& s, std::int64_t begin, std::int64_t end, F&& f) {
  std::int64_t first = 0;
  for (const sequence_slice& slice : s.bound->sequences) {
    for (std::int64_t t = std::max(begin, first); t < std::min(end, first + slice.n_tokens); ++t)
      f(slice, t, slice.first_position + t - first);
    first += slice.n_tokens;
  }
}

/// Rows of a table: those of the tokens' ids, positions or types.
class embed_step final : public step {
 public:
  embed_step(const compile_context& c, const graph::node& n)
      : table_(c.weights.find(*c.g.weight_of(n.inputs[0]), weight_use::rows)),
        slot_(c.g.weight_of(n.inputs[0])->slot),
        kernels_(c.kernels),
        by_(c.g.nodes[c.g.at(n.inputs[1]).producer].kind),
        y_(c.value(n.outputs[0])),
        stride_(row_bytes(table_->type, table_->dims.cols())) {}
  void run(const worker_state& w, int /*phase*/) const override {
    const run_state& s = w.run;
    w.split(s.n_tokens, [&](std::int64_t begin, std::int64_t end) {
      if (by_ == graph::op::positions)
        return for_positions(
            s, begin, end, [&](const sequence_slice&, std::int64_t r, std::int64_t position) { copy(s, r, position); });
      const std::span<const std::int32_t> rows = by_ == graph::op::token_ids ? s.bound->ids : s.bound->token_types;
      for (std::int64_t r = begin; r < end; ++r) copy(s, r, rows.empty() ? 0 : rows[static_cast<std::size_t>(r)]);
      if (by_ == graph::op::token_ids)
        for_segments(s.bound->adapters.tokens, begin, end,
                     [&](const adapter_segment& segment, std::int64_t first, std::int64_t last) {
                       for (const adapter_share& share : segment.shares)
                         if (const low_rank_change& c = share.weights->embeddings[slot_]; c.rank != 0)
                           for (std::int64_t r = first; r < last; ++r) change(s, share, c, r);
                     });
    });
  }

 private:
  void copy(const run_state& s, std::int64_t r, std::int64_t row) const {
    table_->to_f32(table_->data + static_cast<std::size_t>(row) * stride_, y_.cols, s.at(y_) + r * y_.cols);
  }
  /// What an adapter adds to row r.
  void change(const run_state& s, const adapter_share& share, const low_rank_change& c, std::int64_t r) const {
    const auto id = static_cast<std::size_t>(s.bound->ids[static_cast<std::size_t>(r)]);
    float* u = s.bound->adapters.projections + r * s.bound->adapters.width;
    float* y = s.at(y_) + r * y_.cols;
    kernels::find_to_f32(kernels_.isa, c.a_type)(
        c.a + id * static_cast<std::size_t>(c.rank) * kernels::low_rank_size(c.a_type), c.rank, u);
    if (c.b == nullptr) return kernels_.scaled_add(u, share.scale * c.factor, c.rank, y);
    kernels_.scale(u, share.scale * c.factor, c.rank, u);
    kernels_.expand({c.b_type, c.b, c.rank, u, c.rank, 1, 0, y_.cols, y, y_.cols});
  }

  const packed_weight* table_;
  std::uint32_t slot_;
  const kernels::kernel_set& kernels_;
  graph::op by_;
  operand y_;
  std::size_t stride_;
};

/// The memory plan lets the output lie where the input does, unless either is a result of the graph.
class tap_step final : public step {
 public:
  tap_step(const compile_context& c, const graph::node& n)
      : x_(c.value(n.inputs[0])), y_(c.value(n.outputs[0])), point_(n.as<graph::tap_attributes>().point) {}
  void run(const worker_state& w, int /*phase*/) const override {
    const float* x = w.run.at(x_);
    float* y = w.run.at(y_);
    if (x != y)
      w.split(w.run.rows(x_), [&](std::int64_t begin, std::int64_t end) {
        std::memcpy(y + begin * x_.cols, x + begin * x_.cols,
                    static_cast<std::size_t>((end - begin) * x_.cols) * sizeof(float));
      });
    w.show({point_, 0, x, w.run.rows(x_), x_.cols});
  }

 private:
  operand x_, y_;
  std::uint32_t point_;
};

/// Angles per unit of position and factor of cosine and sine, for each rotating pair.
struct rotation {
  rope_table table;
  std::vector<double> frequency;
  float magnitude = 1;
  std::vector<double> long_frequency;  ///< Empty without long factors.
};

std::vector<double> frequencies(const graph::rope_attributes& a, const float* factors, double low, double high) {
  std::vector<double> all;
  for (std::int64_t i = 0; i < a.n_rot / 2; ++i) {
    const double plain = std::pow(a.base, -2.0 * static_cast<double>(i) / static_cast<double>(a.n_rot)) /
                         (factors ? static_cast<double>(factors[i]) : 1.0);
    double f = plain * a.freq_scale;
    if (a.yarn) {
      const double ramp = 1 - std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
      f = f * (1 - ramp) + plain * ramp;
    }
    all.push_back(f);
  }
  return all;
}

rotation rotation_of(const rope_table& t) {
  constexpr double two_pi = 6.283185307179586476925;
  const graph::rope_attributes& a = t.attributes;
  rotation out{t, {}, 1, {}};
  const auto n = static_cast<double>(a.n_rot);
  // YaRN (Peng et al. 2023, section 3.2): the pair that makes `turns` turns over the original context.
  const auto pair_of = [&](double turns) {
    return n * std::log(static_cast<double>(a.original_context) / (turns * two_pi)) / (2 * std::log(a.base));
  };
  double low = 0, high = 0;
  if (a.yarn) {
    low = std::max(0.0, std::floor(pair_of(a.beta_fast)));
    high = std::min(n - 1, std::ceil(pair_of(a.beta_slow)));
    out.magnitude = static_cast<float>(a.attn_factor * (1 + 0.1 * std::log(1 / a.freq_scale)));
  } else {
    out.magnitude = static_cast<float>(a.attn_factor);
  }
  out.frequency = frequencies(a, t.factors, low, high);
  if (t.long_factors) out.long_frequency = frequencies(a, t.long_factors, low, high);
  return out;
}

class rope_table_step final : public step {
 public:
  explicit rope_table_step(const std::vector<rope_table>& tables) {
    for (const rope_table& t : tables) rotations_.push_back(rotation_of(t));
  }
  void run(const worker_state& w, int /*phase*/) const override {
    w.split(w.run.n_tokens, [&](std::int64_t begin, std::int64_t end) {
      for_positions(w.run, begin, end, [&](const sequence_slice& slice, std::int64_t t, std::int64_t position) {
        for (const rotation& r : rotations_) {
          const bool grows = !r.long_frequency.empty() && slice.n_ctx > r.table.attributes.original_context;
          fill(grows ? r.long_frequency : r.frequency, r.magnitude, position, r.table.row(w.run, t));
        }
      });
    });
  }

 private:
  static void fill(const std::vector<double>& frequency, float magnitude, std::int64_t position, float* row) {
    const std::size_t pairs = frequency.size();
    for (std::size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(position) * frequency[i];
      row[i] = static_cast<float>(std::cos(angle)) * magnitude;
      row[pairs + i] = static_cast<float>(std::sin(angle)) * magnitude;
    }
  }
  std::vector<rotation> rotations_;
};

}  // namespace

std::unique_ptr<step> make_rope_tables(const std::vector<rope_table>& ropes) {
  return std::make_unique<rope_table_step>(ropes);
}

std::unique_ptr<step> make_tap(const compile_context& c, const graph::node& n) {
  return std::make_unique<tap_step>(c, n);
}

std::unique_ptr<step> make_rowwise(const compile_context& c, const graph::node& n) {
  const kernels::kernel_set& k = c.kernels;
  const operand y = c.value(n.outputs[0]);
  switch (n.kind) {
    case graph::op::embed:
      return std::make_unique<embed_step>(c, n);
    case graph::op::rms_norm: {
      const operand x = c.value(n.inputs[0]);
      const float* weight = c.vector(n.inputs[1]);
      const auto& a = n.as<graph::norm_attributes>();
      const std::int64_t group = a.group == 0 ? x.cols : a.group;
      return rowwise(y, [=, eps = a.eps, &k](const run_state& s, std::int64_t r) {
        for (std::int64_t i = r * x.cols; i < (r + 1) * x.cols; i += group)
          k.rms_norm(s.at(x) + i, weight, eps, group, s.at(y) + i);
      });
    }
    case graph::op::layer_norm: {
      const operand x = c.value(n.inputs[0]);
      const float* weight = c.vector(n.inputs[1]);
      const float* bias = c.vector(n.inputs[2]);
      const float eps = n.as<graph::norm_attributes>().eps;
      return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
        k.layer_norm(s.at(x) + r * x.cols, weight, bias, eps, x.cols, s.at(y) + r * y.cols);
      });
    }
    case graph::op::rope: {
      const operand x = c.value(n.inputs[0]);
      const auto& a = n.as<graph::rope_attributes>();
      const rope_table table = c.rope(a, n.inputs[1], n.inputs[2]);
      return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
        float* row = s.at(y) + r * y.cols;
        if (row != s.at(x) + r * x.cols)
          std::memcpy(row, s.at(x) + r * x.cols, static_cast<std::size_t>(x.cols) * sizeof(float));
        const float* cos = table.row(s, r);
        k.rope(row, x.cols / a.head_dim, a.head_dim, a.n_rot, cos, cos + a.n_rot / 2, a.pairs);
      });
    }
    case graph::op::glu: {
      const operand gate = c.value(n.inputs[0]), up = c.value(n.inputs[1]);
      const activation act = n.as<graph::glu_attributes>().act;
      if (gate.cols != y.cols)
        return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
          float factor;
          k.activate(act, s.at(gate) + r, 1, &factor);
          k.scale(s.at(up) + r * y.cols, factor, y.cols, s.at(y) + r * y.cols);
        });
      return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
        k.glu(act, s.at(gate) + r * y.cols, s.at(up) + r * y.cols, y.cols, s.at(y) + r * y.cols);
      });
    }
    case graph::op::activate: {
      const operand x = c.value(n.inputs[0]);
      const activation act = n.as<graph::activate_attributes>().act;
      return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
        k.activate(act, s.at(x) + r * y.cols, y.cols, s.at(y) + r * y.cols);
      });
    }
    case graph::op::add: {
      const operand a = c.value(n.inputs[0]), b = c.value(n.inputs[1]);
      return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
        k.add(s.at(a) + r * y.cols, s.at(b) + r * y.cols, y.cols, s.at(y) + r * y.cols);
      });
    }
    case graph::op::scale: {
      const operand x = c.value(n.inputs[0]);
      const float factor = n.as<graph::scale_attributes>().factor;
      const float* weight = c.vector(n.inputs[1]);  // its value is there when the program runs, not before
      return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
        k.scale(s.at(x) + r * y.cols, weight ? factor * *weight : factor, y.cols, s.at(y) + r * y.cols);
      });
    }
    case graph::op::softcap: {
      const operand x = c.value(n.inputs[0]);
      const float cap = n.as<graph::softcap_attributes>().cap;
      return rowwise(y, [=, &k](const run_state& s, std::int64_t r) {
        k.softcap(s.at(x) + r * y.cols, cap, y.cols, s.at(y) + r * y.cols);
      });
    }
    case graph::op::columns: {
      const operand x = c.value(n.inputs[0]);
      const auto a = n.as<graph::columns_attributes>();
      const std::int64_t step = a.step == 0 ? x.cols : a.step;
      return rowwise(y, [=](const run_state& s, std::int64_t r) {
        const float* from = s.at(x) + r * x.cols + a.first;
        for (float *to = s.at(y) + r * y.cols, *end = to + y.cols; to < end; to += a.count, from += step)
          std::memcpy(to, from, static_cast<std::size_t>(a.count) * sizeof(float));
      });
    }
    default: {  // select_outputs
      const operand x = c.value(n.inputs[0]);
      return rowwise(y, [=](const run_state& s, std::int64_t r) {
        std::memcpy(s.at(y) + r * y.cols, s.at(x) + s.bound->output_rows[static_cast<std::size_t>(r)] * y.cols,
                    static_cast<std::size_t>(y.cols) * sizeof(float));
      });
    }
  }
}

}  // namespace flywheel::inline v0::device
