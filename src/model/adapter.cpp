// Adapters as runs take them: factors of every weight that a model's graphs multiply with, in one piece of memory.
#include "flywheel/model/adapter.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "flywheel/core/executor.hpp"
#include "flywheel/detail/try.hpp"
#include "flywheel/formats/half.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "kernels/low_rank/low_rank.hpp"
#include "kernels/registry.hpp"
#include "src/core/checksum.hpp"
#include "src/model/adapter_set.hpp"
#include "src/model/model_state.hpp"
#include "src/model/row_reader.hpp"

namespace flywheel::inline v0 {
namespace {

constexpr std::size_t whole_lines(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// What is kept of a stored factor: 16 bits stay 16 bits.
dtype kept_type(dtype stored) { return stored == dtype::f16 || stored == dtype::bf16 ? stored : dtype::f32; }

void put_factor(std::byte* at, dtype type, std::int64_t index, float value) {
  if (type == dtype::f32)
    std::memcpy(at + 4 * index, &value, 4);
  else {
    const std::uint16_t half = type == dtype::f16 ? formats::f32_to_f16(value) : formats::f32_to_bf16(value);
    std::memcpy(at + 2 * index, &half, 2);
  }
}

/// One change and where it goes.
struct adapter_piece {
  const adapter_change* change = nullptr;
  const detail::weight_site* site = nullptr;
  std::uint32_t slot = 0;
  bool table = false;  ///< Of embedding rows.
  dtype a_type = dtype::f32, b_type = dtype::f32;
  std::int64_t rank = 0;
  std::size_t a_bytes = 0, b_bytes = 0, gain_bytes = 0;

  [[nodiscard]] std::size_t bytes() const { return a_bytes + b_bytes + gain_bytes; }
};

class adapter_loader {
 public:
  adapter_loader(const model::state& base, const io::archive& file, const control& control)
      : base_(base), file_(file), control_(control) {}

  result<std::shared_ptr<adapter::state>> load(std::shared_ptr<const model::state> base) {
    const detail::adapter_sites* sites = base_.engine->sites();
    if (sites == nullptr || sites->elsewhere)
      return error{errc::unsupported,
                   "adapters run on the CPU, and some of the model's products on another device; open the model "
                   "without devices, or merge the adapter into it (flywheel lora merge)",
                   file_.path().string()};
    FLYWHEEL_TRY(const std::vector<adapter_change> changes, adapter_changes(file_, base_.file));
    auto made = std::make_shared<adapter::state>();
    std::size_t total = 0;
    std::vector<adapter_piece> pieces;
    for (const adapter_change& c : changes) {
      FLYWHEEL_CHECK(place(c, *sites, pieces));
      made->info.rank = std::max(made->info.rank, c.rank);
    }
    for (const adapter_piece& p : pieces) total += p.bytes();
    FLYWHEEL_TRY(made->storage, buffer::zeros(total, base_.ctx.memory()));
    made->weights.products.resize(sites->weights.size());
    made->weights.embeddings.resize(sites->weights.size());
    std::byte* at = made->storage.mutable_data();
    std::uint64_t done = 0;
    detail::checksum sum;
    for (const adapter_piece& p : pieces) {
      if (control_.stopped()) return error{errc::cancelled, "loading was cancelled", p.change->weight};
      if (control_.progress) control_.progress(done, total, "loading the adapter");
      device::low_rank_change& c = (p.table ? made->weights.embeddings : made->weights.products)[p.slot];
      if (c.rank != 0)
        return error{errc::unsupported, "it is changed twice; merge the adapter (flywheel lora merge)",
                     file_.path().string() + ": " + p.change->weight};
      FLYWHEEL_CHECK(fill(p, at, c));
      sum.add(std::as_bytes(std::span(&p.slot, 1)));
      sum.add(std::as_bytes(std::span(&c.factor, 1)));
      at += p.bytes();
      done += p.bytes();
    }
    sum.add(made->storage.bytes());
    for (const auto& slots : sites->together) {
      std::int64_t width = 0, rows = 0;
      for (const std::uint32_t slot : slots) {
        width += made->weights.products[slot].rank;
        rows += made->weights.embeddings[slot].rank;
      }
      made->weights.width = std::max({made->weights.width, width, rows});
    }
    made->digest = sum.value();
    made->base = std::move(base);
    made->info.name = name();
    if (auto alpha = file_.metadata().number("adapter.lora.alpha")) made->info.alpha = static_cast<float>(*alpha);
    made->info.weights = static_cast<std::int64_t>(changes.size());
    made->info.bytes = made->storage.size() + 2 * sites->weights.size() * sizeof(device::low_rank_change);
    if (control_.progress) control_.progress(total, total, "loading the adapter");
    return made;
  }

 private:
  [[nodiscard]] std::string name() const {
    if (auto said = file_.metadata().string("general.name")) return std::string(*said);
    return file_.path().stem().string();
  }
  [[nodiscard]] const io::tensor_info& tensor(const std::string& name) const { return *file_.find(name); }
  [[nodiscard]] std::string in_file(const std::string& name) const { return file_.path().string() + ": " + name; }

  /// The pieces of a change: one for each part of a fused tensor.
  result<void> place(const adapter_change& c, const detail::adapter_sites& sites, std::vector<adapter_piece>& pieces) {
    const std::size_t before = pieces.size();
    const bool replaces = c.what == adapter_change::kind::replace;
    bool table = c.what == adapter_change::kind::embedding;
    if (replaces && !c.head)
      table = std::any_of(sites.weights.begin(), sites.weights.end(),
                          [&](const detail::weight_site& s) { return s.name == c.weight && s.table; });
    if (table && !c.magnitude.empty())
      return error{errc::unsupported,
                   "unsupported: DoRA of embedding rows while a model runs; merge the adapter into the model (flywheel "
                   "lora merge)",
                   in_file(c.weight)};
    bool other = base_.file.find(c.weight) == nullptr || base_.file.find(c.weight)->dims.rank() != 2;
    for (std::uint32_t slot = 0; slot < sites.weights.size(); ++slot) {
      const detail::weight_site& site = sites.weights[slot];
      if (site.name != c.weight) continue;
      other = other || site.other;
      if (!(table ? site.table : site.product)) continue;
      adapter_piece p{&c, &site, slot, table};
      const dtype a = kept_type(tensor(c.a).type);
      if (replaces) {
        p.rank = site.cols;
        (table ? p.a_type : p.b_type) = a;
      } else {
        p.rank = c.rank;
        p.a_type = a;
        p.b_type = c.magnitude.empty() ? kept_type(tensor(c.b).type) : dtype::f32;
      }
      if (table)
        p.a_bytes = whole_lines(static_cast<std::size_t>(site.rows * p.rank) * kernels::low_rank_size(p.a_type));
      else if (!replaces)
        p.a_bytes = static_cast<std::size_t>(p.rank) * kernels::low_rank_stride(p.a_type, site.cols);
      const std::int64_t columns = table ? site.cols : site.rows;
      if (!(table && replaces))  // and a line behind it, which kernels may read
        p.b_bytes = whole_lines(static_cast<std::size_t>((columns + kernels::low_rank_block - 1) /
                                                         kernels::low_rank_block * kernels::low_rank_block * p.rank) *
                                kernels::low_rank_size(p.b_type)) +
                    64;
      if (!c.magnitude.empty()) p.gain_bytes = whole_lines(static_cast<std::size_t>(columns) * sizeof(float));
      pieces.push_back(p);
    }
    if (other || pieces.size() == before)
      return error{errc::unsupported,
                   "only products and embedding rows can be changed while a model runs; merge the adapter into the "
                   "model (flywheel lora merge)",
                   in_file(c.weight)};
    return {};
  }

  /// Calls f(first row, numbers) for some rows at a time of rows [first, first + count) of a tensor. Error: malformed
  /// (not finite).
  template <class F>
  result<void> each_block(const io::archive& file, const std::string& name, std::int64_t first, std::int64_t count,
                          F&& f) {
    const io::tensor_info& info = *file.find(name);
    FLYWHEEL_TRY(const detail::row_reader reader, detail::row_reader::create(file, info, base_.ctx));
    for (std::int64_t row = first; row < first + count;) {
      if (control_.stopped()) return error{errc::cancelled, "loading was cancelled", name};
      const std::int64_t n = std::min(first + count - row, reader.rows_at_once());
      FLYWHEEL_TRY(const std::span<const float> values, reader.read(row, n, &file == &file_ ? own_ : base_own_));
      const auto wrong = std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
      if (wrong != values.end())
        return error{errc::malformed,
                     "row " + std::to_string(row + (wrong - values.begin()) / info.dims.cols()) +
                         " holds a number that is not finite",
                     file.path().string() + ": " + name};
      f(row, values);
      row += n;
    }
    return {};
  }
  /// The same, calling f(row, numbers) for every row.
  template <class F>
  result<void> each_row(const io::archive& file, const std::string& name, std::int64_t first, std::int64_t count,
                        F&& f) {
    const auto cols = static_cast<std::size_t>(file.find(name)->dims.cols());
    return each_block(file, name, first, count, [&](std::int64_t row, std::span<const float> values) {
      for (; !values.empty(); values = values.subspan(cols)) f(row++, values.first(cols));
    });
  }

  result<void> fill(const adapter_piece& p, std::byte* at, device::low_rank_change& c) {
    const adapter_change& change = *p.change;
    const detail::weight_site& site = *p.site;
    c.rank = p.rank;
    c.a_type = p.a_type;
    c.b_type = p.b_type;
    c.factor = static_cast<float>(change.factor);
    std::byte* a = p.a_bytes == 0 ? nullptr : at;
    std::byte* b = p.b_bytes == 0 ? nullptr : at + p.a_bytes;
    auto* gain = p.gain_bytes == 0 ? nullptr : reinterpret_cast<float*>(at + p.a_bytes + p.b_bytes);
    c.a = a;
    c.b = b;
    c.gain = gain;
    const auto put_b = [&](std::int64_t column, std::span<const float> row) {
      constexpr std::int64_t block = kernels::low_rank_block;
      for (std::int64_t j = 0; j < p.rank; ++j)
        put_factor(b, p.b_type, (column / block * p.rank + j) * block + column % block,
                   row[static_cast<std::size_t>(j)]);
    };
    if (change.what == adapter_change::kind::replace) {
      c.factor = 1;
      std::vector<float> now;
      FLYWHEEL_TRY(const detail::row_reader reader,
                   detail::row_reader::create(base_.file, *base_.file.find(change.weight), base_.ctx));
      std::optional<error> failure;
      FLYWHEEL_CHECK(
          each_row(file_, change.a, site.first_row, site.rows, [&](std::int64_t row, std::span<const float> saved) {
            const auto was = reader.read(row, 1, base_own_);
            if (!was) {
              if (!failure) failure = was.error();
              return;
            }
            now.assign(saved.begin(), saved.end());
            for (std::size_t i = 0; i < now.size(); ++i) now[i] -= (*was)[i];
            if (p.table)
              for (std::int64_t i = 0; i < p.rank; ++i)
                put_factor(a, p.a_type, row * p.rank + i, now[static_cast<std::size_t>(i)]);
            else
              put_b(row - site.first_row, now);
          }));
      return failure ? result<void>(*std::move(failure)) : result<void>();
    }
    std::vector<float> plain;  // A, for norms
    FLYWHEEL_CHECK(each_row(
        file_, change.a, 0, p.table ? site.rows : p.rank, [&](std::int64_t row, std::span<const float> values) {
          if (gain) plain.insert(plain.end(), values.begin(), values.end());
          if (p.table)
            for (std::int64_t i = 0; i < p.rank; ++i)
              put_factor(a, p.a_type, row * p.rank + i, values[static_cast<std::size_t>(i)]);
          else
            for (std::int64_t i = 0; i < site.cols; ++i)
              put_factor(a + static_cast<std::size_t>(row) * kernels::low_rank_stride(p.a_type, site.cols), p.a_type, i,
                         values[static_cast<std::size_t>(i)]);
        }));
    std::vector<std::vector<float>> rows;  // of B, for norms
    const std::int64_t first = p.table ? 0 : site.first_row, count = p.table ? site.cols : site.rows;
    FLYWHEEL_CHECK(each_row(file_, change.b, first, count, [&](std::int64_t row, std::span<const float> values) {
      if (gain)
        rows.emplace_back(values.begin(), values.end());
      else
        put_b(row - first, values);
    }));
    if (!gain) return {};
    return fill_gains(p, plain, rows, gain, put_b);
  }

  /// gain = m / ||W + factor B A|| - 1 for every row, and B times 1 + gain (Liu et al. 2024, equation 5).
  template <class Put>
  result<void> fill_gains(const adapter_piece& p, const std::vector<float>& a, std::vector<std::vector<float>>& rows,
                          float* gain, Put&& put_b) {
    const adapter_change& change = *p.change;
    const detail::weight_site& site = *p.site;
    std::vector<float> m;
    FLYWHEEL_CHECK(each_row(file_, change.magnitude, 0, 1,
                            [&](std::int64_t, std::span<const float> row) { m.assign(row.begin(), row.end()); }));
    const kernels::kernel_set& vectors = kernels::select(kernels::find_cluster(base_.ctx.isa().selected));
    const auto cols = static_cast<std::size_t>(site.cols);
    std::vector<float> sums;  // W + factor B A, some rows at a time
    const auto one_row = [&](std::int64_t r, float* sum) {
      std::vector<float>& b = rows[static_cast<std::size_t>(r)];
      for (std::size_t j = 0; j < b.size(); ++j)
        vectors.scaled_add(a.data() + j * cols, static_cast<float>(change.factor * static_cast<double>(b[j])),
                           site.cols, sum);
      double squares = 0;
      for (std::size_t i = 0; i < cols; ++i) squares += static_cast<double>(sum[i]) * static_cast<double>(sum[i]);
      const double scale = static_cast<double>(m[static_cast<std::size_t>(site.first_row + r)]) / std::sqrt(squares);
      gain[r] = static_cast<float>(scale - 1);
      for (float& x : b) x = static_cast<float>(static_cast<double>(x) * scale);
      if (!std::all_of(b.begin(), b.end(), [](float x) { return std::isfinite(x); })) gain[r] = HUGE_VALF;
      put_b(r, b);
    };
    FLYWHEEL_CHECK(each_block(
        base_.file, change.weight, site.first_row, site.rows, [&](std::int64_t row, std::span<const float> w) {
          sums.assign(w.begin(), w.end());
          parallel_for(base_.ctx.executor(), w.size() / cols, 1, [&](std::size_t begin, std::size_t end) {
            for (std::size_t r = begin; r < end; ++r)
              one_row(row - site.first_row + static_cast<std::int64_t>(r), sums.data() + r * cols);
          });
        }));
    const float* const zero = std::find_if_not(gain, gain + site.rows, [](float x) { return std::isfinite(x); });
    if (zero != gain + site.rows)
      return error{errc::malformed,
                   "row " + std::to_string(site.first_row + (zero - gain)) + " of the changed weight has no length",
                   in_file(change.magnitude)};
    return {};
  }

  const model::state& base_;
  const io::archive& file_;
  const control& control_;
  detail::row_reader::scratch own_, base_own_;
};

}  // namespace

result<adapter> adapter::open(const model& base, const std::filesystem::path& path, const control& control) {
  return detail::guarded([&]() -> result<adapter> {
    if (!base) return error{errc::invalid_argument, "the model handle is empty; open a model first", "model"};
    FLYWHEEL_TRY(const io::archive file, open_adapter_archive(path, base.shared()->file));
    return open(base, file, control);
  });
}

result<adapter> adapter::open(const model& base, const io::archive& file, const control& control) {
  return detail::guarded([&]() -> result<adapter> {
    if (!base) return error{errc::invalid_argument, "the model handle is empty; open a model first", "model"};
    FLYWHEEL_TRY(auto made, adapter_loader(*base.shared(), file, control).load(base.shared()));
    return adapter(std::shared_ptr<const state>(std::move(made)));
  });
}

const adapter_info& adapter::info() const noexcept {
  static const adapter_info none;
  return state_ ? state_->info : none;
}

}  // namespace flywheel::inline v0
