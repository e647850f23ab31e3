#include "src/device/cpu/low_rank.hpp"

#include <algorithm>

namespace flywheel::inline v0::device {

template <class F>
void adapted_products::for_changes(const adapter_segment& segment, F&& f) const {
  std::int64_t before = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i)
    for (const adapter_share& share : segment.shares) {
      const low_rank_change& change = share.weights->products[slots_[i]];
      if (change.rank == 0) continue;
      f(i, share, change, before);
      before += change.rank;
    }
}

template <class F>
void adapted_products::for_projections(const run_state& s, std::int64_t begin, std::int64_t end, F&& f) const {
  for (const adapter_segment& segment : segments(s))
    for_changes(segment, [&](std::size_t, const adapter_share& share, const low_rank_change& c, std::int64_t offset) {
      if (begin < c.rank && end > 0)
        f(segment, share, c, offset, std::max<std::int64_t>(0, begin), std::min(c.rank, end));
      begin -= c.rank;
      end -= c.rank;
    });
}

namespace {

/// Into the L2 cache, and no more of it than leaves room for others.
void fetch_lines(const std::byte* p, std::size_t bytes) {
  constexpr std::size_t line = 64, most = std::size_t{128} << 10;
  for (std::size_t at = 0; at < std::min(bytes, most); at += line) __builtin_prefetch(p + at, 0, 2);
  asm volatile("" : : : "memory");  // compilers leave calls out that only prefetch
}

}  // namespace

void adapted_products::fetch(const run_state& s, std::int64_t begin, std::int64_t end) const {
  for_projections(s, begin, end,
                  [&](const adapter_segment&, const adapter_share&, const low_rank_change& c, std::int64_t,
                      std::int64_t first, std::int64_t last) {
                    const std::size_t stride = kernels::low_rank_stride(c.a_type, x_.cols);
                    if (c.a != nullptr)
                      fetch_lines(c.a + static_cast<std::size_t>(first) * stride,
                                  static_cast<std::size_t>(last - first) * stride);
                  });
}

void adapted_products::fetch_columns(const run_state& s, std::size_t i, std::int64_t row, std::int64_t row_end,
                                     std::int64_t first, std::int64_t cols) const {
  for_segments(segments(s), row, row_end, [&](const adapter_segment& segment, std::int64_t, std::int64_t) {
    for_changes(segment, [&](std::size_t product, const adapter_share&, const low_rank_change& c, std::int64_t) {
      const auto column_bytes = static_cast<std::size_t>(c.rank) * kernels::low_rank_size(c.b_type);
      if (product == i)
        fetch_lines(c.b + static_cast<std::size_t>(first) * column_bytes,
                    static_cast<std::size_t>(cols) * column_bytes);
    });
  });
}

bool adapted_products::any(const run_state& s) const {
  for (const adapter_segment& segment : segments(s))
    for (const adapter_share& share : segment.shares)
      for (const std::uint32_t slot : slots_)
        if (share.weights->products[slot].rank != 0) return true;
  return false;
}

bool adapted_products::gains(const adapter_segment& segment, std::size_t i) const {
  return std::any_of(segment.shares.begin(), segment.shares.end(),
                     [&](const adapter_share& share) { return share.weights->products[slots_[i]].gain != nullptr; });
}

bool adapted_products::gains(const run_state& s, std::size_t i) const {
  return std::any_of(segments(s).begin(), segments(s).end(),
                     [&](const adapter_segment& segment) { return gains(segment, i); });
}

std::int64_t adapted_products::projections(const run_state& s) const {
  std::int64_t sum = 0;
  for (const adapter_segment& segment : segments(s))
    for_changes(segment,
                [&](std::size_t, const adapter_share&, const low_rank_change& c, std::int64_t) { sum += c.rank; });
  return sum;
}

/// Projections [first, last) of one change, `offset` being where those of the change begin in a row.
void adapted_products::project(const run_state& s, const adapter_share& share, const low_rank_change& c, const float* x,
                               std::int64_t row, std::int64_t row_end, std::int64_t offset, std::int64_t first,
                               std::int64_t last) const {
  const std::int64_t width = s.bound->adapters.width;
  float* u = s.bound->adapters.projections + row * width + offset + first;
  const float scale = share.scale * c.factor;
  if (c.a == nullptr) {
    for (std::int64_t r = row; r < row_end; ++r, u += width)
      kernels_.scale(x + r * x_.cols + first, scale, last - first, u);
    return;
  }
  kernels::project_args args;
  args.type = c.a_type;
  args.a = c.a + static_cast<std::size_t>(first) * kernels::low_rank_stride(c.a_type, x_.cols);
  args.ranks = last - first;
  args.k = x_.cols;
  args.x = x + row * x_.cols;
  args.x_stride = x_.cols;
  args.rows = row_end - row;
  args.scale = scale;
  args.u = u;
  args.u_stride = width;
  kernels_.project(args);
}

void adapted_products::project(const run_state& s, const float* x, std::int64_t begin, std::int64_t end) const {
  for_projections(s, begin, end,
                  [&](const adapter_segment& segment, const adapter_share& share, const low_rank_change& c,
                      std::int64_t offset, std::int64_t first,
                      std::int64_t last) { project(s, share, c, x, segment.begin, segment.end, offset, first, last); });
}

void adapted_products::project_rows(const run_state& s, const float* x, std::int64_t row, std::int64_t row_end) const {
  for_segments(segments(s), row, row_end, [&](const adapter_segment& segment, std::int64_t begin, std::int64_t end) {
    for_changes(segment, [&](std::size_t, const adapter_share& share, const low_rank_change& c, std::int64_t offset) {
      project(s, share, c, x, begin, end, offset, 0, c.rank);
    });
  });
}

void adapted_products::scale(const run_state& s, std::size_t i, const float* bias, std::int64_t row,
                             std::int64_t row_end, std::int64_t first, std::int64_t cols, float* y,
                             std::int64_t y_stride) const {
  for_segments(segments(s), row, row_end, [&](const adapter_segment& segment, std::int64_t begin, std::int64_t end) {
    if (!gains(segment, i)) return;
    for (std::int64_t c = 0; c < cols; ++c) {
      float gain = 0;
      for (const adapter_share& share : segment.shares)
        if (const float* gains = share.weights->products[slots_[i]].gain) gain += share.scale * gains[first + c];
      const float constant = bias ? bias[first + c] : 0;
      for (std::int64_t r = begin - row; r < end - row; ++r) {
        float& sum = y[r * y_stride + c];
        sum += gain * (sum - constant);
      }
    }
  });
}

void adapted_products::add(const run_state& s, std::size_t i, std::int64_t row, std::int64_t row_end,
                           std::int64_t first, std::int64_t cols, float* y, std::int64_t y_stride) const {
  const adapter_bindings& bound = s.bound->adapters;
  for_segments(segments(s), row, row_end, [&](const adapter_segment& segment, std::int64_t begin, std::int64_t end) {
    for_changes(segment, [&](std::size_t product, const adapter_share&, const low_rank_change& c, std::int64_t offset) {
      if (product != i) return;
      kernels::expand_args args;
      args.type = c.b_type;
      args.b = c.b;
      args.rank = c.rank;
      args.u = bound.projections + begin * bound.width + offset;
      args.u_stride = bound.width;
      args.rows = end - begin;
      args.begin = first;
      args.end = first + cols;
      args.y = y + (begin - row) * y_stride;
      args.y_stride = y_stride;
      kernels_.expand(args);
    });
  });
}

}  // namespace flywheel::inline v0::device
