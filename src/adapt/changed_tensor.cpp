#include "src/adapt/changed_tensor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"

namespace flywheel::inline v0::adapt {
namespace {

constexpr std::int64_t rows_per_read = 64;

std::size_t size_of(std::int64_t n) noexcept { return static_cast<std::size_t>(n); }

}  // namespace

result<void> read_rows(const io::archive& from, const io::tensor_info& tensor, std::int64_t first, std::int64_t count,
                       float* out) {
  const std::int64_t cols = tensor.dims.cols();
  const std::size_t stride = row_bytes(tensor.type, cols);
  std::vector<std::byte> stored(size_of(count) * stride);
  FLYWHEEL_CHECK(from.read(tensor, static_cast<std::uint64_t>(first) * stride, stored));
  return formats::decode(tensor_view(tensor.type, {count, cols}, stored.data()), std::span(out, size_of(count * cols)));
}

struct delta_rows::state {
  io::archive adapter;
  io::tensor_info left, right;
  std::int64_t rank, cols, matrix_rows;
  bool flipped;  // R is B^T
  mutable std::mutex guard;
  mutable std::shared_ptr<const std::vector<float>> values;  // R [matrices][rank][cols]

  [[nodiscard]] result<std::shared_ptr<const std::vector<float>>> r() const {
    const std::lock_guard lock(guard);
    if (values) return values;
    auto made = std::make_shared<std::vector<float>>(size_of(right.dims.elements()));
    FLYWHEEL_CHECK(read_rows(adapter, right, 0, right.dims.rows(), made->data()));
    if (flipped) {
      std::vector<float> turned(made->size());
      for (std::int64_t c = 0; c < cols; ++c)
        for (std::int64_t j = 0; j < rank; ++j) turned[size_of(j * cols + c)] = (*made)[size_of(c * rank + j)];
      *made = std::move(turned);
    }
    values = std::move(made);
    return values;
  }
};

delta_rows::delta_rows(const io::archive& adapter, const adapter_change& change, const io::tensor_info& to)
    : state_(std::make_unique<state>()) {
  const bool embedding = change.what == adapter_change::kind::embedding;
  state& s = *state_;
  s.adapter = adapter;
  s.left = *adapter.find(embedding ? change.a : change.b);
  s.right = *adapter.find(embedding ? change.b : change.a);
  s.rank = change.rank;
  s.cols = to.dims.cols();
  s.matrix_rows = to.dims.rank() > 1 ? to.dims[to.dims.rank() - 2] : 1;
  s.flipped = embedding;
}
delta_rows::~delta_rows() = default;
delta_rows::delta_rows(delta_rows&&) noexcept = default;

result<void> delta_rows::add(std::int64_t first, std::int64_t count, float factor, float* values) const {
  const state& s = *state_;
  FLYWHEEL_TRY(const std::shared_ptr<const std::vector<float>> r, s.r());
  std::vector<float> left(size_of(count * s.rank));
  FLYWHEEL_CHECK(read_rows(s.adapter, s.left, first, count, left.data()));
  for (std::int64_t i = 0; i < count; ++i) {
    const float* const right = r->data() + (first + i) / s.matrix_rows * s.rank * s.cols;
    float* const row = values + i * s.cols;
    for (std::int64_t j = 0; j < s.rank; ++j) {
      const float x = factor * left[size_of(i * s.rank + j)];
      const float* const from = right + j * s.cols;
      for (std::int64_t c = 0; c < s.cols; ++c) row[c] += x * from[c];
    }
  }
  return {};
}

void delta_rows::release() const noexcept {
  const std::lock_guard lock(state_->guard);
  state_->values = nullptr;
  state_->adapter.release(state_->left);
  state_->adapter.release(state_->right);
}

namespace {

class changed_tensor final : public io::computed_tensor {
 public:
  changed_tensor(const io::archive& base, const io::tensor_info& to, const std::vector<tensor_change>& changes)
      : base_(base), to_(to), cols_(to.dims.cols()) {
    // What replaces comes first, so that factors are added to it.
    for (const bool whole : {true, false})
      for (const tensor_change& c : changes) {
        if (whole != (c.change.what == adapter_change::kind::replace)) continue;
        one& made = changes_.emplace_back();
        made.what = c;
        if (!whole) made.delta.emplace(c.adapter, c.change, to);
      }
  }

  [[nodiscard]] result<void> rows(std::int64_t first, std::int64_t count, std::byte* out) const override {
    std::vector<float> stored, values;
    for (std::int64_t r = first; r < first + count; r += rows_per_read) {
      const std::int64_t n = std::min(rows_per_read, first + count - r);
      stored.resize(size_of(n * cols_));
      FLYWHEEL_CHECK(read_rows(base_, to_, r, n, stored.data()));
      values = stored;
      for (const one& c : changes_) FLYWHEEL_CHECK(apply(c, r, n, stored, values));
      std::memcpy(out + size_of((r - first) * cols_) * sizeof(float), values.data(), values.size() * sizeof(float));
    }
    return {};
  }

  void release() const noexcept override {
    base_.release(to_);
    for (const one& c : changes_) {
      if (c.delta) c.delta->release();
      if (const io::tensor_info* whole = c.what.adapter.find(c.what.change.a); whole != nullptr)
        c.what.adapter.release(*whole);
    }
    const std::lock_guard lock(guard_);
    for (const one& c : changes_) c.column_gains.clear();
  }

 private:
  struct one {
    tensor_change what;
    std::optional<delta_rows> delta;
    mutable std::vector<float> column_gains;  ///< Of DoRA on embeddings, once they were needed.
  };

  [[nodiscard]] result<void> apply(const one& c, std::int64_t first, std::int64_t n, const std::vector<float>& stored,
                                   std::vector<float>& values) const {
    const float scale = c.what.scale, factor = static_cast<float>(c.what.change.factor);
    if (!c.delta) {
      std::vector<float> whole(stored.size());
      FLYWHEEL_CHECK(read_rows(c.what.adapter, *c.what.adapter.find(c.what.change.a), first, n, whole.data()));
      for (std::size_t i = 0; i < whole.size(); ++i)
        values[i] = scale == 1 && values[i] == stored[i] ? whole[i] : values[i] + scale * (whole[i] - stored[i]);
      return {};
    }
    if (c.what.change.magnitude.empty()) return c.delta->add(first, n, scale * factor, values.data());

    // W + scale ((m / ||W + factor B A|| - 1) W + (m / ||..||) factor B A): the norm is a row's; of embeddings, which
    // are used transposed, a column's.
    std::vector<float> whole = stored;
    FLYWHEEL_CHECK(c.delta->add(first, n, factor, whole.data()));
    const bool by_column = c.what.change.what == adapter_change::kind::embedding;
    std::vector<float> gains;
    if (by_column) {
      FLYWHEEL_TRY(gains, column_gains(c));
    } else {
      gains.resize(size_of(n));
      FLYWHEEL_CHECK(read_magnitudes(c, first, n, gains.data()));
      for (std::int64_t i = 0; i < n; ++i) {
        double sum = 0;
        for (std::int64_t k = 0; k < cols_; ++k) sum += square(whole[size_of(i * cols_ + k)]);
        gains[size_of(i)] = ratio(gains[size_of(i)], sum);
      }
    }
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t k = 0; k < cols_; ++k) {
        const std::size_t at = size_of(i * cols_ + k);
        values[at] += scale * (gains[size_of(by_column ? k : i)] * whole[at] - stored[at]);
      }
    return {};
  }

  [[nodiscard]] static double square(float x) noexcept { return static_cast<double>(x) * static_cast<double>(x); }
  /// A row of zeros stays one.
  [[nodiscard]] static float ratio(float magnitude, double squares) noexcept {
    return squares > 0 ? static_cast<float>(static_cast<double>(magnitude) / std::sqrt(squares)) : 0.0F;
  }

  [[nodiscard]] result<void> read_magnitudes(const one& c, std::int64_t first, std::int64_t n, float* out) const {
    const io::tensor_info& t = *c.what.adapter.find(c.what.change.magnitude);
    std::vector<float> all(size_of(t.dims.elements()));
    FLYWHEEL_CHECK(read_rows(c.what.adapter, t, 0, 1, all.data()));
    std::copy_n(all.begin() + first, n, out);
    return {};
  }

  [[nodiscard]] result<std::vector<float>> column_gains(const one& c) const {
    const std::lock_guard lock(guard_);
    if (!c.column_gains.empty()) return c.column_gains;
    std::vector<double> sums(size_of(cols_));
    std::vector<float> rows(size_of(rows_per_read * cols_));
    for (std::int64_t r = 0; r < to_.dims.rows(); r += rows_per_read) {
      const std::int64_t n = std::min(rows_per_read, to_.dims.rows() - r);
      FLYWHEEL_CHECK(read_rows(base_, to_, r, n, rows.data()));
      FLYWHEEL_CHECK(c.delta->add(r, n, static_cast<float>(c.what.change.factor), rows.data()));
      for (std::int64_t i = 0; i < n * cols_; ++i) sums[size_of(i % cols_)] += square(rows[size_of(i)]);
    }
    std::vector<float> gains(size_of(cols_));
    FLYWHEEL_CHECK(read_magnitudes(c, 0, cols_, gains.data()));
    for (std::size_t k = 0; k < gains.size(); ++k) gains[k] = ratio(gains[k], sums[k]);
    c.column_gains = std::move(gains);
    return c.column_gains;
  }

  io::archive base_;
  io::tensor_info to_;
  std::int64_t cols_;
  std::deque<one> changes_;
  mutable std::mutex guard_;
};

}  // namespace

std::unique_ptr<io::computed_tensor> make_changed_tensor(const io::archive& base, const io::tensor_info& to,
                                                         std::vector<tensor_change> changes) {
  return std::make_unique<changed_tensor>(base, to, changes);
}

}  // namespace flywheel::inline v0::adapt
