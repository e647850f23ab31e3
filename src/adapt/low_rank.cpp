#include "src/adapt/low_rank.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "flywheel/adapt/merge/method.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "src/quant/products.hpp"

namespace flywheel::inline v0::adapt {
namespace {

using quant::as_size;

constexpr std::int64_t task_rows = 96;    ///< A multiple of every tile of the kernels.
constexpr std::int64_t oversampling = 8;  ///< Directions beyond the rank, which make those of the rank exact.
constexpr double smallest_share = 1e-12;  ///< Of a direction's squared length: the rest is rounding.

double square(double x) noexcept { return x * x; }

/// Products with d and its transpose.
class operand {
 public:
  operand(std::span<const float> d, std::int64_t n, std::int64_t k, std::int64_t width, const context& ctx)
      : d_(d), n_(n), k_(k), product_(ctx), pool_(ctx.executor()), ctx_(ctx), width_(width) {}

  result<void> allocate() {
    const std::int64_t longest = std::max(n_, k_);
    scratch_bytes_ = product_.prepared_bytes(task_rows, longest);
    FLYWHEEL_TRY(scratch_, buffer::allocate(scratch_bytes_ * pool_.concurrency(), ctx_.memory()));
    FLYWHEEL_TRY(panels_,
                 buffer::allocate(product_.panel_bytes(longest) * as_size(product_.panels(width_)), ctx_.memory()));
    return {};
  }
  /// y [n, width] = d z, z [k, width]
  void multiply(const float* z, float* y) {
    run(n_, k_, z, y, [&](std::int64_t row, std::int64_t rows, std::byte* own) {
      product_.prepare(d_.data() + row * k_, k_, rows, k_, own);
    });
  }
  /// z [k, width] = d^T y, y [n, width]
  void multiply_transposed(const float* y, float* z) {
    run(k_, n_, y, z, [&](std::int64_t column, std::int64_t columns, std::byte* own) {
      product_.prepare_columns(d_.data() + column, k_, columns, n_, own);
    });
  }
  /// ||d - left right||^2
  double distance(const std::vector<float>& left, const std::vector<float>& right, std::int64_t rank) {
    const std::int64_t tasks = (n_ + task_rows - 1) / task_rows;
    std::vector<double> sums(as_size(tasks));
    quant::for_tasks(pool_, tasks, [&](unsigned, std::int64_t task) {
      std::vector<float> row(as_size(k_));
      for (std::int64_t r = task * task_rows; r < std::min(n_, (task + 1) * task_rows); ++r) {
        std::copy_n(d_.begin() + r * k_, k_, row.begin());
        for (std::int64_t j = 0; j < rank; ++j) {
          const float x = left[as_size(r * rank + j)];
          const float* const from = right.data() + j * k_;
          for (std::int64_t c = 0; c < k_; ++c) row[as_size(c)] -= x * from[c];
        }
        for (const float x : row) sums[as_size(task)] += square(static_cast<double>(x));
      }
    });
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

 private:
  template <class Prepare>
  void run(std::int64_t rows, std::int64_t depth, const float* thin, float* out, const Prepare& prepare) {
    product_.pack_columns(thin, width_, width_, depth, panels_.mutable_data());
    quant::for_tasks(pool_, (rows + task_rows - 1) / task_rows, [&](unsigned slot, std::int64_t task) {
      const std::int64_t first = task * task_rows, count = std::min(task_rows, rows - first);
      std::byte* const own = scratch_.mutable_data() + slot * scratch_bytes_;
      prepare(first, count, own);
      product_.run(own, count, panels_.data(), width_, depth, out + first * width_, width_, nullptr, 0);
    });
  }

  std::span<const float> d_;
  std::int64_t n_, k_;
  quant::f32_product product_;
  executor& pool_;
  context ctx_;
  std::int64_t width_;
  std::size_t scratch_bytes_ = 0;
  buffer scratch_, panels_;
};

/// Makes the columns of y [n, width] orthonormal, by Gram and Schmidt twice; what depends on those before becomes 0.
void orthonormalize(std::vector<float>& y, std::int64_t n, std::int64_t width) {
  std::vector<float> columns(y.size());  // [width, n]
  for (std::int64_t r = 0; r < n; ++r)
    for (std::int64_t c = 0; c < width; ++c) columns[as_size(c * n + r)] = y[as_size(r * width + c)];
  const auto dot = [&](const float* a, const float* b) {
    double sums[8] = {};  // of every eighth element, so that they are vectors
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8)
      for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
    for (; i < n; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return std::accumulate(sums, sums + 8, 0.0);
  };
  for (std::int64_t c = 0; c < width; ++c) {
    float* const own = columns.data() + c * n;
    const double before = dot(own, own);
    for (int time = 0; time < 2; ++time)
      for (std::int64_t other = 0; other < c; ++other) {
        const float* const q = columns.data() + other * n;
        const auto part = static_cast<float>(dot(own, q));
        for (std::int64_t i = 0; i < n; ++i) own[i] -= part * q[i];
      }
    const double after = dot(own, own);
    const auto factor = static_cast<float>(after > smallest_share * before && after > 0 ? 1 / std::sqrt(after) : 0);
    for (std::int64_t i = 0; i < n; ++i) own[i] *= factor;
  }
  for (std::int64_t r = 0; r < n; ++r)
    for (std::int64_t c = 0; c < width; ++c) y[as_size(r * width + c)] = columns[as_size(c * n + r)];
}

/// Eigenvalues, and eigenvectors as columns, of a symmetric matrix [n, n], by Jacobi's rotations (Golub & Van Loan,
/// Matrix Computations, 8.5). `a` is lost.
std::pair<std::vector<double>, std::vector<double>> eigen(std::vector<double>& a, std::int64_t n) {
  std::vector<double> v(a.size());
  for (std::int64_t i = 0; i < n; ++i) v[as_size(i * n + i)] = 1;
  constexpr int max_sweeps = 60;
  for (int sweep = 0; sweep < max_sweeps; ++sweep) {
    double off = 0, all = 0;
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j) (i == j ? all : off) += square(a[as_size(i * n + j)]);
    if (off <= 1e-30 * all || all + off == 0) break;
    for (std::int64_t p = 0; p < n; ++p)
      for (std::int64_t q = p + 1; q < n; ++q) {
        const double apq = a[as_size(p * n + q)];
        if (apq == 0) continue;
        const double theta = (a[as_size(q * n + q)] - a[as_size(p * n + p)]) / (2 * apq);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        const auto rotate = [&](double& x, double& y) {
          const double old = x;
          x = c * old - s * y;
          y = s * old + c * y;
        };
        for (std::int64_t i = 0; i < n; ++i) rotate(a[as_size(i * n + p)], a[as_size(i * n + q)]);
        for (std::int64_t i = 0; i < n; ++i) rotate(a[as_size(p * n + i)], a[as_size(q * n + i)]);
        for (std::int64_t i = 0; i < n; ++i) rotate(v[as_size(i * n + p)], v[as_size(i * n + q)]);
      }
  }
  std::vector<double> values(as_size(n));
  for (std::int64_t i = 0; i < n; ++i) values[as_size(i)] = a[as_size(i * n + i)];
  return {std::move(values), std::move(v)};
}

/// Values as they come back from a type.
result<void> round_to(dtype type, std::vector<float>& values) {
  if (type == dtype::f32) return {};
  const auto count = static_cast<std::int64_t>(values.size());
  std::vector<std::byte> stored(row_bytes(type, count));
  formats::find_encoder(type)(values.data(), count, stored.data());
  return formats::decode(tensor_view(type, {count}, stored.data()), values);
}

}  // namespace

result<low_rank> best_low_rank(std::span<const float> d, std::int64_t n, std::int64_t k,
                               const low_rank_options& options, const context& ctx) {
  const std::int64_t most = std::min({options.rank, n, k}), width = std::min({most + oversampling, n, k});
  operand matrix(d, n, k, width, ctx);
  FLYWHEEL_CHECK(matrix.allocate());
  low_rank made;
  for (const float x : d) made.squares += square(static_cast<double>(x));

  // A basis of where d leads random directions; its powers turn it towards the largest ones.
  std::vector<float> z(as_size(k * width)), y(as_size(n * width));
  for (std::int64_t i = 0; i < k * width; ++i) {
    const double u = 1 - merge::uniform(options.seed, 0, static_cast<std::uint64_t>(i));
    const double w = merge::uniform(options.seed, 1, static_cast<std::uint64_t>(i));
    z[as_size(i)] = static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * w));
  }
  matrix.multiply(z.data(), y.data());
  orthonormalize(y, n, width);
  for (int i = 0; i < options.iterations; ++i) {
    matrix.multiply_transposed(y.data(), z.data());
    orthonormalize(z, k, width);
    matrix.multiply(z.data(), y.data());
    orthonormalize(y, n, width);
  }
  // d ~ y (y^T d) = y z^T, and z^T z = E S^2 E^T: U = y E, V = z E / S.
  matrix.multiply_transposed(y.data(), z.data());
  std::vector<double> gram(as_size(width * width));
  for (std::int64_t r = 0; r < k; ++r)
    for (std::int64_t i = 0; i < width; ++i) {
      const auto x = static_cast<double>(z[as_size(r * width + i)]);
      for (std::int64_t j = 0; j < width; ++j)
        gram[as_size(i * width + j)] += x * static_cast<double>(z[as_size(r * width + j)]);
    }
  const auto [squares, vectors] = eigen(gram, width);
  std::vector<std::int64_t> order(as_size(width));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&values = squares](std::int64_t a, std::int64_t b) {
    return values[as_size(a)] > values[as_size(b)];
  });

  made.rank = most;
  if (options.energy) {
    double sum = 0;
    for (made.rank = 0; made.rank < most && (made.rank == 0 || sum < *options.energy * made.squares); ++made.rank)
      sum += squares[as_size(order[as_size(made.rank)])];
  }
  const std::int64_t rank = made.rank;
  made.left.resize(as_size(n * rank));
  made.right.resize(as_size(rank * k));
  const double least = 1e-14 * std::max(squares[as_size(order[0])], 0.0);
  for (std::int64_t j = 0; j < rank; ++j) {
    const std::int64_t e = order[as_size(j)];
    const double s2 = squares[as_size(e)];
    if (!(s2 > least)) continue;
    const double root = std::sqrt(std::sqrt(s2));  // sqrt(S)
    const auto along = [&](const std::vector<float>& from, std::int64_t r) {
      double sum = 0;
      for (std::int64_t i = 0; i < width; ++i)
        sum += static_cast<double>(from[as_size(r * width + i)]) * vectors[as_size(i * width + e)];
      return sum;
    };
    for (std::int64_t r = 0; r < n; ++r) made.left[as_size(r * rank + j)] = static_cast<float>(along(y, r) * root);
    for (std::int64_t c = 0; c < k; ++c) made.right[as_size(j * k + c)] = static_cast<float>(along(z, c) / root);
  }
  FLYWHEEL_CHECK(round_to(options.type, made.left));
  FLYWHEEL_CHECK(round_to(options.type, made.right));
  made.error_squares = matrix.distance(made.left, made.right, rank);
  return made;
}

}  // namespace flywheel::inline v0::adapt
