#include "src/device/simulator/cost.hpp"

#include <algorithm>

namespace flywheel::inline v0::device::simulation {
namespace {

std::uint64_t u(std::int64_t x) noexcept { return static_cast<std::uint64_t>(x); }

std::uint64_t ceil_div(std::uint64_t a, std::uint64_t b) noexcept { return (a + b - 1) / b; }

/// A product in whole tiles, strips and groups.
blocking padded(const profile& p, const product& of) noexcept {
  const blocking unit = smallest_blocking(p, of);
  return {rounded_up(of.rows, unit.m), rounded_up(of.n, unit.n), rounded_up(of.k, unit.k)};
}

/// Blocks of equal size and place along one dimension.
struct stretch {
  std::int64_t count = 0;
  std::int64_t size = 0;
  bool first = false, last = false;
};

std::array<stretch, 3> stretches(std::int64_t extent, std::int64_t block) noexcept {
  const std::int64_t blocks = blocks_of(extent, block);
  if (blocks == 1) return {{{1, extent, true, true}, {}, {}}};
  return {
      {{1, block, true, false}, {blocks - 2, block, false, false}, {1, extent - (blocks - 1) * block, false, true}}};
}

}  // namespace

std::uint64_t code_bytes(const profile& p, std::int32_t bits, std::int64_t k) noexcept {
  return u(k) * p.strip() * u(bits) / 8;
}

blocking smallest_blocking(const profile& p, const product& of) noexcept {
  return {p.tile_m, p.strip(), of.group == 0 ? p.tile_k : rounded_up(of.group, p.tile_k)};
}

bool valid(const profile& p, const product& of, const blocking& b) noexcept {
  const blocking unit = smallest_blocking(p, of), whole = padded(p, of);
  const auto fits = [](std::int64_t block, std::int64_t step, std::int64_t most) {
    return block >= step && block <= most && block % step == 0;
  };
  return fits(b.m, unit.m, whole.m) && fits(b.n, unit.n, whole.n) && fits(b.k, unit.k, whole.k);
}

scratch_layout lay_out(const profile& p, const product& of, const blocking& b) noexcept {
  scratch_layout out;
  const auto take = [&](std::uint64_t bytes) {
    const std::uint64_t at = out.bytes;
    out.bytes += ceil_div(bytes, p.alignment) * p.alignment;
    return at;
  };
  const std::uint64_t groups = u(of.groups_in(b.k));
  for (scratch_layout::half& half : out.halves) {
    half.weights = take(u(b.n) / p.strip() * code_bytes(p, of.bits, b.k));
    half.weight_scales = take(u(b.n) * groups * sizeof(float));
    half.codes = take(u(b.m) * u(b.k));
    half.scales = take(u(b.m) * groups * sizeof(float));
  }
  out.sums = take(u(b.m) * u(b.n) * sizeof(std::int32_t));
  out.results = take(u(b.m) * u(b.n) * sizeof(float));
  return out;
}

cost price(const profile& p, const product& of, const blocking& b) noexcept {
  cost total;
  const auto ms = stretches(of.rows, b.m), ns = stretches(of.n, b.n), ks = stretches(of.k, b.k);
  const bool one_k = ks[0].last, one_n = ns[0].last;
  for (const stretch& m : ms)
    for (const stretch& n : ns)
      for (const stretch& k : ks) {
        const std::uint64_t count = u(m.count) * u(n.count) * u(k.count);
        if (count == 0) continue;
        const std::uint64_t m_tiles = u(blocks_of(m.size, p.tile_m)), strips = u(blocks_of(n.size, p.strip())),
                            k_tiles = u(blocks_of(k.size, p.tile_k)), groups = u(of.groups_in(k.size));
        const std::uint64_t work = m_tiles * p.tile_m * strips * p.strip() * k_tiles * p.tile_k;
        std::uint64_t compute = strips * k_tiles * p.fill_cycles + ceil_div(work, p.multiply_adds_per_cycle);
        if (of.group != 0 || k.last) compute += ceil_div(u(m.size) * u(n.size) * groups, p.scale_lanes);

        // What lies on the chip already is not fetched again.
        std::uint64_t in = 0, out = 0, transfers = 0;
        if (m.first || !one_n || !one_k) {
          in += strips * (code_bytes(p, of.bits, static_cast<std::int64_t>(k_tiles * p.tile_k)) +
                          p.strip() * groups * sizeof(float));
          ++transfers;
        }
        if (n.first || !one_k) {
          in += u(m.size) * (u(k.size) + groups * sizeof(float));
          ++transfers;
        }
        const std::uint64_t fill = transfers * p.dma_setup_cycles + ceil_div(in, p.dma_bytes_per_cycle);
        if (k.last) {
          out = u(m.size) * u(n.size) * sizeof(float);
          ++transfers;
        }
        const std::uint64_t dma = transfers * p.dma_setup_cycles + ceil_div(in + out, p.dma_bytes_per_cycle);

        // While a step is multiplied, the next one is fetched and the last one stored. Nothing hides the first fetch.
        if (m.first && n.first && k.first) total.cycles += fill;
        total.cycles += count * std::max(compute, dma);
        total.compute += count * compute;
        total.dma += count * dma;
        total.dma_bytes += count * (in + out);
        total.steps += count;
        total.tile_multiply_adds += count * work;
      }
  total.multiply_adds = u(of.rows) * u(of.n) * u(of.k);
  return total;
}

std::optional<blocking> plan(const profile& p, const product& of, std::uint64_t scratch) noexcept {
  const blocking unit = smallest_blocking(p, of), whole = padded(p, of);
  std::optional<blocking> best;
  std::uint64_t best_cycles = 0;
  const auto next = [](std::int64_t block, std::int64_t most) {
    return block == most ? most + 1 : std::min(2 * block, most);
  };
  for (blocking b = unit; b.m <= whole.m; b.m = next(b.m, whole.m))
    for (b.n = unit.n; b.n <= whole.n; b.n = next(b.n, whole.n))
      for (b.k = unit.k; b.k <= whole.k; b.k = next(b.k, whole.k)) {
        if (lay_out(p, of, b).bytes > scratch) break;
        const std::uint64_t cycles = price(p, of, b).cycles;
        if (best && cycles > best_cycles) continue;
        best = b;
        best_cycles = cycles;
      }
  return best;
}

}  // namespace flywheel::inline v0::device::simulation
