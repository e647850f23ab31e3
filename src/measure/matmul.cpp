#include "src/measure/matmul.hpp"

#include <atomic>
#include <cmath>
#include <cstring>

#include "flywheel/core/tensor.hpp"
#include "flywheel/detail/barrier.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "src/measure/random_weights.hpp"

namespace flywheel::inline v0::measure {
namespace {

// As in src/device/cpu/linear.cpp.
constexpr std::int64_t alone_floats = 16384;  ///< Up to so many activations every worker prepares all for itself.
constexpr std::int64_t split_rows = 8;        ///< Up to so many rows panels are split, beyond that tiles are taken.
constexpr std::int64_t tile_rows = 96, tile_cols = 256, prepare_rows = 48;

constexpr std::size_t rounded64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr std::int64_t divided_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

/// What the workers of one product share.
struct matmul_workload::shared {
  std::int64_t m;
  bool alone;
  std::size_t prefetch;
  unsigned workers;
  std::atomic<std::int64_t> next[2] = {0, 0};  ///< Tasks of preparing and of multiplying.
};

result<matmul_workload> matmul_workload::create(const kernels::matmul_kernel& kernel, std::int64_t n, std::int64_t k,
                                                std::int64_t max_rows, std::span<std::byte> area, executor& pool) {
  return detail::guarded([&]() -> result<matmul_workload> {
    matmul_workload w;
    w.kernel_ = &kernel;
    w.pool_ = &pool;
    w.spins_ = patient_spins(pool.concurrency());
    w.n_ = n;
    w.k_ = k;
    w.area_ = area;
    w.panel_bytes_ = kernel.panel_bytes(k);
    w.matrix_ = w.panel_bytes_ * static_cast<std::size_t>(w.panels());
    w.copies_ = area.size() / w.matrix_;
    if (w.copies_ == 0) return error{errc::invalid_argument, "the area does not hold one matrix", {}};
    random_bits random(1);
    w.rows_.resize(row_bytes(kernel.weight, k) * static_cast<std::size_t>(n));
    fill_random_rows(random, kernel.weight, k, 1.0F / std::sqrt(static_cast<float>(k)), w.rows_);
    w.x_.resize(static_cast<std::size_t>(max_rows * k));
    for (float& x : w.x_) x = random.number();
    w.y_.resize(static_cast<std::size_t>(max_rows * n));
    w.prepared_ = rounded64(kernel.prepared_bytes(max_rows, k));
    FLYWHEEL_TRY(w.preparation_, buffer::zeros(w.prepared_ * (pool.concurrency() + 1)));
    w.pack();
    std::byte* first = area.data();
    parallel_for(pool, w.copies_ - 1, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) std::memcpy(first + (i + 1) * w.matrix_, first, w.matrix_);
    });
    return w;
  });
}

void matmul_workload::pack() {
  const std::size_t stride = row_bytes(kernel_->weight, k_);
  parallel_for(*pool_, static_cast<std::size_t>(panels()), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t p = begin; p < end; ++p) {
      const std::int64_t column = static_cast<std::int64_t>(p) * kernel_->panel_cols;
      const auto cols = static_cast<std::int32_t>(std::min<std::int64_t>(kernel_->panel_cols, n_ - column));
      kernel_->pack(rows_.data() + static_cast<std::size_t>(column) * stride, stride, cols, k_,
                    area_.data() + p * panel_bytes_);
    }
  });
}

void matmul_workload::run(std::int64_t m, int count, std::size_t prefetch_bytes) {
  const unsigned workers = pool_->concurrency();
  const bool together = workers == 1 || pool_->gang();
  shared s{m, m == 1 || m * k_ <= alone_floats, prefetch_bytes, workers};
  const auto matrix = [&](int i) { return area_.data() + (next_ + static_cast<std::size_t>(i)) % copies_ * matrix_; };
  if (together) {
    // A worker that yields on a busy machine may be gone for milliseconds: that would measure the machine.
    detail::barrier barrier(workers, spins_);
    pool_->run(workers, [&](unsigned worker) {
      for (int i = 0; i < count; ++i) {
        prepare(s, worker);
        if (!s.alone) barrier.arrive_and_wait();
        if (worker == 0) s.next[0] = 0;  // nobody prepares before the barrier below
        multiply(s, worker, matrix(i));
        barrier.arrive_and_wait();
        if (worker == 0) s.next[1] = 0;
        if (s.alone && m > split_rows) barrier.arrive_and_wait();  // nobody takes tiles before the reset
      }
    });
  } else {
    for (int i = 0; i < count; ++i) {
      s.next[0] = s.next[1] = 0;
      if (!s.alone) pool_->run(workers, [&](unsigned worker) { prepare(s, worker); });
      pool_->run(workers, [&](unsigned worker) {
        if (s.alone) prepare(s, worker);
        multiply(s, worker, matrix(i));
      });
    }
  }
  next_ = (next_ + static_cast<std::size_t>(count)) % copies_;
}

void matmul_workload::prepare(shared& s, unsigned worker) {
  std::byte* out = preparation_.mutable_data();
  if (s.alone) {
    kernel_->prepare(x_.data(), k_, 0, s.m, k_, out + (worker + 1) * prepared_);
    return;
  }
  const std::int64_t tasks = divided_up(s.m, prepare_rows);
  for (std::int64_t i; (i = s.next[0].fetch_add(1, std::memory_order_relaxed)) < tasks;)
    kernel_->prepare(x_.data(), k_, i * prepare_rows, std::min(s.m, (i + 1) * prepare_rows), k_, out);
}

void matmul_workload::multiply(shared& s, unsigned worker, const std::byte* matrix) {
  const std::byte* prepared = preparation_.data() + (s.alone ? (worker + 1) * prepared_ : 0);
  if (s.m <= split_rows) {
    const std::int64_t begin = panels() * worker / s.workers, end = panels() * (worker + 1) / s.workers;
    if (begin < end) call(s, prepared, matrix, 0, s.m, begin, end);
    return;
  }
  const std::int64_t tile = kernel_->prepared.tile_rows, height = std::max(tile, tile_rows / tile * tile);
  const std::int64_t wide = std::max<std::int64_t>(1, tile_cols / kernel_->panel_cols);
  const std::int64_t blocks = divided_up(s.m, height), tasks = blocks * divided_up(panels(), wide);
  for (std::int64_t i; (i = s.next[1].fetch_add(1, std::memory_order_relaxed)) < tasks;) {
    const std::int64_t row = i % blocks * height, panel = i / blocks * wide;
    call(s, prepared, matrix, row, std::min(s.m, row + height), panel, std::min(panels(), panel + wide));
  }
}

void matmul_workload::call(shared& s, const std::byte* prepared, const std::byte* matrix, std::int64_t row,
                           std::int64_t row_end, std::int64_t panel, std::int64_t panel_end) {
  const std::int64_t column = panel * kernel_->panel_cols;
  kernels::matmul_args args;
  args.prepared = prepared;
  args.row_begin = row;
  args.row_end = row_end;
  args.panels = matrix + static_cast<std::size_t>(panel) * panel_bytes_;
  args.k = k_;
  args.n = std::min(n_, panel_end * kernel_->panel_cols) - column;
  args.y = y_.data() + row * n_ + column;
  args.y_stride = n_;
  args.prefetch_bytes = s.prefetch;
  kernel_->run(args);
}

double matmul_workload::max_error(std::int64_t m) const {
  const formats::decode_fn decode = formats::find_decoder(kernel_->weight);
  std::vector<float> w(static_cast<std::size_t>(k_));
  double worst = 0, squares = 0;
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < n_; j += std::max<std::int64_t>(1, n_ / 61)) {
    decode(rows_.data() + static_cast<std::size_t>(j) * row_bytes(kernel_->weight, k_), k_, w.data());
    for (std::int64_t i = 0; i < m; i += std::max<std::int64_t>(1, m / 5), ++count) {
      double sum = 0;
      for (std::int64_t l = 0; l < k_; ++l)
        sum += static_cast<double>(x_[static_cast<std::size_t>(i * k_ + l)]) *
               static_cast<double>(w[static_cast<std::size_t>(l)]);
      worst = std::max(worst, std::fabs(static_cast<double>(y_[static_cast<std::size_t>(i * n_ + j)]) - sum));
      squares += sum * sum;
    }
  }
  return squares > 0 ? worst / std::sqrt(squares / static_cast<double>(count)) : worst;
}

spread time_products(matmul_workload& work, std::int64_t m, double seconds, std::size_t prefetch_bytes) {
  // So many products per repetition that a dispatch does not count.
  const auto one = [&] { return timed([&] { work.run(m, 1, prefetch_bytes); }); };
  const double once = std::min(one(), one());
  const int count = static_cast<int>(std::max(1.0, std::min(0.001 / once, 1000.0)));
  // Where other programs take cores away, several repetitions are needed for one that sees all of them.
  constexpr std::size_t enough = 12;
  std::vector<double> all;
  const double start = wall_seconds();
  double passed = 0;
  do {
    all.push_back(timed([&] { work.run(m, count, prefetch_bytes); }) / count);
    passed = wall_seconds() - start;
  } while (all.size() < 3 || passed < seconds || (all.size() < enough && passed < 4 * seconds));
  return spread_of(std::move(all));
}

}  // namespace flywheel::inline v0::measure
