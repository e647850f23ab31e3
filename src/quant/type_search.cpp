#include "src/quant/type_search.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/quant/quantize.hpp"
#include "src/model/row_reader.hpp"
#include "src/quant/allocation.hpp"
#include "src/quant/edited_archive.hpp"
#include "src/quant/mixes.hpp"
#include "src/quant/tensor_rounder.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr dtype candidates[] = {dtype::iq2_xxs, dtype::iq2_xs, dtype::iq2_s, dtype::q2_k, dtype::iq3_xxs, dtype::iq3_s,
                                dtype::q3_k,    dtype::iq4_xs, dtype::q4_k,  dtype::q5_k, dtype::q6_k,    dtype::q8_0};
constexpr std::int64_t sampled_rows = 512;         ///< Of a tensor, to estimate errors with.
constexpr std::int64_t small_model = 200'000'000;  ///< Weights.
constexpr int max_rounds = 4;
constexpr dtype probe = dtype::q3_k;  ///< Coarse enough for a clear effect.

/// Bytes of this program.
class memory_source final : public io::byte_source {
 public:
  explicit memory_source(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  [[nodiscard]] std::uint64_t size() const noexcept override { return bytes_.size(); }
  [[nodiscard]] std::span<const std::byte> mapped() const noexcept override { return bytes_; }
  [[nodiscard]] result<void> read(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset)
      return error{errc::invalid_argument, "out of range", {}};
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
    return {};
  }

 private:
  std::vector<std::byte> bytes_;
};

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

/// Tensors whose effect is measured together.
struct unit {
  std::vector<std::size_t> tensors;
  double kl_per_error = 0;
};

class search {
 public:
  search(const io::archive& from, const type_search_options& options) : from_(from), options_(options) {}

  result<void> prepare(std::span<const std::optional<dtype>> types, std::vector<evaluate::window> windows) {
    if (windows.size() < 4)
      return error{errc::invalid_argument, "the calibration text is too short to measure with", "calibration"};
    context_options alone;
    alone.executor = serial_executor();
    alone.isa = options_.ctx.isa().selected;
    FLYWHEEL_TRY(one_worker_, context::create(std::move(alone)));
    std::int64_t elements = 0;
    for (std::size_t i = 0; i < types.size(); ++i) {
      const io::tensor_info& t = from_.tensors()[i];
      elements += t.dims.elements();
      std::vector<choice> all;
      if (types[i])
        all = {{*types[i], bytes_of(t, *types[i]), 0}};
      else {
        FLYWHEEL_TRY(all, choices_of(t));
        free_.push_back(i);
      }
      choices_.push_back(std::move(all));
    }
    fixed_.assign(types.begin(), types.end());
    group(elements <= small_model);

    std::vector<evaluate::window> fit, held_out;
    for (std::size_t i = 0; i < windows.size(); ++i) (i % 2 == 0 ? fit : held_out).push_back(std::move(windows[i]));
    model_options opened;
    opened.context = options_.ctx;
    FLYWHEEL_TRY(const model base, model::open(from_, opened));
    FLYWHEEL_TRY(fit_, evaluate::baseline::compute(base, std::move(fit), {}, stop_only()));
    FLYWHEEL_TRY(held_out_, evaluate::baseline::compute(base, std::move(held_out), {}, stop_only()));
    return {};
  }

  result<type_search_result> run() {
    FLYWHEEL_CHECK(measure_sensitivity());
    FLYWHEEL_TRY(std::vector<std::size_t> picked,
                 options_.bytes ? within_bytes(*options_.bytes) : within_kl(*options_.kl));
    type_search_result made;
    const double predicted = predict(picked);
    for (std::size_t i = 0; i < choices_.size(); ++i) {
      made.types.push_back(choices_[i][picked[i]].type);
      made.share.push_back(predicted > 0 ? weight_of_[i] * choices_[i][picked[i]].error / predicted : 0);
    }
    made.predicted_kl = predicted;
    FLYWHEEL_TRY(made.measured, compare(held_out_, picked));
    return made;
  }

 private:
  [[nodiscard]] flywheel::control stop_only() const { return {{}, options_.control.stop}; }
  static std::uint64_t bytes_of(const io::tensor_info& t, dtype type) noexcept {
    return type == t.type ? t.bytes : static_cast<std::uint64_t>(t.dims.rows()) * row_bytes(type, t.dims.cols());
  }
  [[nodiscard]] std::vector<float> importance_of(const io::tensor_info& t) const {
    return options_.importance != nullptr ? options_.importance->of(t.name) : std::vector<float>();
  }

  /// Every candidate with its error: the importance-weighted squared error of rows spread over the tensor.
  result<std::vector<choice>> choices_of(const io::tensor_info& t) {
    const std::vector<float> importance = importance_of(t);
    std::vector<choice> all = {{t.type, t.bytes, 0}};
    for (const dtype wanted : candidates) {
      const dtype type = fitting(wanted, t.dims.cols());
      const bool known = std::any_of(all.begin(), all.end(), [&](const choice& c) { return c.type == type; });
      if (known || !can_quantize(type) || (wants_importance(type) && importance.empty())) continue;
      if (bytes_of(t, type) < t.bytes) all.push_back({type, bytes_of(t, type), 0});
    }
    const tensor_reading reading(from_, t);
    FLYWHEEL_TRY(const auto reader, flywheel::detail::row_reader::create(from_, t, options_.ctx));
    const std::int64_t cols = t.dims.cols(), rows = t.dims.rows(), n = std::min(rows, sampled_rows);
    std::vector<std::vector<double>> errors(static_cast<std::size_t>(n), std::vector<double>(all.size(), 0));
    FLYWHEEL_CHECK(parallel(static_cast<std::size_t>(n), [&](std::size_t i, auto& own) -> result<void> {
      const std::int64_t row = static_cast<std::int64_t>(i) * rows / n;
      FLYWHEEL_TRY(const std::span<const float> values, reader.read(row, 1, own.rows));
      const std::int64_t matrix =
          importance.size() > static_cast<std::size_t>(cols) ? row / (t.dims.dims()[t.dims.rank() - 2]) : 0;
      own.back.resize(values.size());
      for (std::size_t c = 1; c < all.size(); ++c) {
        own.stored.resize(row_bytes(all[c].type, cols));
        const tensor_rounder rounder(t, all[c].type, options_.method, importance, one_worker_);
        FLYWHEEL_CHECK(rounder(values, row, own.stored));
        formats::find_decoder(all[c].type)(own.stored.data(), cols, own.back.data());
        double sum = 0;
        for (std::size_t k = 0; k < values.size(); ++k) {
          const double d = static_cast<double>(values[k]) - static_cast<double>(own.back[k]);
          sum +=
              d * d *
              (importance.empty() ? 1.0 : static_cast<double>(importance[static_cast<std::size_t>(matrix * cols) + k]));
        }
        errors[i][c] = sum;
      }
      return {};
    }));
    for (std::size_t c = 1; c < all.size(); ++c) {
      for (const std::vector<double>& row : errors) all[c].error += row[c];  // in order: the same for any threads
      all[c].error *= static_cast<double>(rows) / static_cast<double>(n);
    }
    return all;
  }

  void group(bool by_tensor) {
    std::map<std::pair<tensor_kind, std::int64_t>, unit> units;
    for (const std::size_t i : free_) {
      const io::tensor_info& t = from_.tensors()[i];
      units[{kind_of(t.name), by_tensor ? static_cast<std::int64_t>(i) : 0}].tensors.push_back(i);
    }
    for (auto& [key, u] : units) units_.push_back(std::move(u));
    weight_of_.assign(choices_.size(), 0);
  }

  struct worker_memory {
    flywheel::detail::row_reader::scratch rows;
    std::vector<std::byte> stored;
    std::vector<float> back;
  };
  /// body(i, memory of the worker) for i < n; the first error by index.
  template <class F>
  result<void> parallel(std::size_t n, const F& body) {
    std::mutex guard;
    std::size_t failed = n;
    std::optional<error> failure;
    parallel_for(options_.ctx.executor(), n, 1, [&](std::size_t begin, std::size_t end) {
      worker_memory own;
      for (std::size_t i = begin; i < end; ++i) {
        auto done = flywheel::detail::guarded([&]() -> result<void> { return body(i, own); });
        if (done) continue;
        const std::scoped_lock lock(guard);
        if (i < failed) failed = i, failure = std::move(done).error();
      }
    });
    if (failure) return *std::move(failure);
    if (options_.control.stopped())
      return error{errc::cancelled, "choosing types was cancelled", from_.path().string()};
    return {};
  }

  /// A tensor in that type; `as_floats`: decoded again, so that the model computes with it as with the original.
  result<std::vector<std::byte>> stored(const io::tensor_info& t, dtype type, bool as_floats) {
    const std::vector<float> importance = importance_of(t);
    const tensor_rounder rounder(t, type, options_.method, importance, one_worker_);
    FLYWHEEL_CHECK(rounder.check());
    const tensor_reading reading(from_, t);
    FLYWHEEL_TRY(const auto reader, flywheel::detail::row_reader::create(from_, t, options_.ctx));
    const std::int64_t cols = t.dims.cols(), rows = t.dims.rows(), step = reader.rows_at_once();
    const std::size_t small = row_bytes(type, cols),
                      row = as_floats ? static_cast<std::size_t>(cols) * sizeof(float) : small;
    std::vector<std::byte> out(static_cast<std::size_t>(rows) * row);
    FLYWHEEL_CHECK(
        parallel(static_cast<std::size_t>((rows + step - 1) / step), [&](std::size_t i, auto& own) -> result<void> {
          const std::int64_t first = static_cast<std::int64_t>(i) * step, n = std::min(step, rows - first);
          FLYWHEEL_TRY(const std::span<const float> values, reader.read(first, n, own.rows));
          std::byte* const place = out.data() + static_cast<std::size_t>(first) * row;
          if (!as_floats) return rounder(values, first, {place, static_cast<std::size_t>(n) * row});
          own.stored.resize(static_cast<std::size_t>(n) * small);
          FLYWHEEL_CHECK(rounder(values, first, own.stored));
          for (std::int64_t r = 0; r < n; ++r)
            formats::find_decoder(type)(own.stored.data() + static_cast<std::size_t>(r) * small, cols,
                                        reinterpret_cast<float*>(place) + r * cols);
          return {};
        }));
    return out;
  }

  /// The model with some tensors replaced.
  result<io::archive> with(const std::vector<std::pair<std::size_t, dtype>>& replaced, bool as_floats) {
    io::archive_content content;
    content.metadata = from_.metadata();
    content.tensors.assign(from_.tensors().begin(), from_.tensors().end());
    content.sources.assign(from_.sources().begin(), from_.sources().end());
    content.path = from_.path();
    content.file_bytes = from_.file_bytes();
    for (const auto& [i, type] : replaced) {
      io::tensor_info& t = content.tensors[i];
      if (t.type == type) continue;
      FLYWHEEL_TRY(std::vector<std::byte> bytes, stored(from_.tensors()[i], type, as_floats));
      t.type = as_floats ? dtype::f32 : type;
      t.offset = 0;
      t.bytes = bytes.size();
      t.part = static_cast<std::uint32_t>(content.sources.size());
      content.sources.push_back(std::make_shared<memory_source>(std::move(bytes)));
    }
    return io::archive::assemble(std::move(content));
  }

  result<evaluate::comparison> compare(const evaluate::baseline& base,
                                       const std::vector<std::pair<std::size_t, dtype>>& replaced, bool as_floats) {
    FLYWHEEL_TRY(const io::archive changed, with(replaced, as_floats));
    model_options opened;
    opened.context = options_.ctx;
    FLYWHEEL_TRY(const model other, model::open(changed, opened));
    return base.compare(other, {}, stop_only());
  }
  result<evaluate::comparison> compare(const evaluate::baseline& base, const std::vector<std::size_t>& picked) {
    std::vector<std::pair<std::size_t, dtype>> all;
    for (std::size_t i = 0; i < picked.size(); ++i) all.emplace_back(i, choices_[i][picked[i]].type);
    return compare(base, all, false);
  }

  void note(std::uint64_t done, std::uint64_t total) const {
    if (options_.control.progress) options_.control.progress(done, total, "measuring");
  }

  /// What a unit costs when its tensors are stored so, per error.
  template <class TypeOf, class ErrorOf>
  result<void> measure(unit& u, const TypeOf& type_of, const ErrorOf& error_of) {
    std::vector<std::pair<std::size_t, dtype>> replaced;
    double error_sum = 0;
    for (const std::size_t i : u.tensors) {
      replaced.emplace_back(i, type_of(i));
      error_sum += error_of(i);
    }
    if (error_sum <= 0) return {};
    FLYWHEEL_TRY(const evaluate::comparison c, compare(fit_, replaced, true));
    u.kl_per_error = std::max(c.kl.value, 0.0) / error_sum;
    for (const std::size_t i : u.tensors) weight_of_[i] = u.kl_per_error;
    return {};
  }

  result<void> measure_sensitivity() {
    std::uint64_t done = 0;
    for (unit& u : units_) {
      // The candidate that is nearest to the probe in size.
      const auto probed = [&](std::size_t i) -> const choice& {
        const auto bits =
            static_cast<double>(bytes_of(from_.tensors()[i], fitting(probe, from_.tensors()[i].dims.cols())));
        return *std::min_element(choices_[i].begin(), choices_[i].end(), [&](const choice& a, const choice& b) {
          return std::abs(static_cast<double>(a.bytes) - bits) < std::abs(static_cast<double>(b.bytes) - bits);
        });
      };
      FLYWHEEL_CHECK(measure(
          u, [&](std::size_t i) { return probed(i).type; }, [&](std::size_t i) { return probed(i).error; }));
      note(++done, units_.size());
    }
    return {};
  }

  [[nodiscard]] double predict(const std::vector<std::size_t>& picked) const {
    double sum = 0;
    for (std::size_t i = 0; i < picked.size(); ++i) sum += weight_of_[i] * choices_[i][picked[i]].error;
    return sum;
  }
  [[nodiscard]] std::vector<std::vector<choice>> weighted() const {
    std::vector<std::vector<choice>> all = choices_;
    for (std::size_t i = 0; i < all.size(); ++i)
      for (choice& c : all[i]) c.error *= weight_of_[i];
    return all;
  }
  /// Effects of the units as they are stored now, where errors are no longer those of the probe.
  result<void> correct(const std::vector<std::size_t>& picked) {
    std::uint64_t done = 0;
    for (unit& u : units_) {
      FLYWHEEL_CHECK(measure(
          u, [&](std::size_t i) { return choices_[i][picked[i]].type; },
          [&](std::size_t i) { return choices_[i][picked[i]].error; }));
      note(++done, units_.size());
    }
    return {};
  }

  result<std::vector<std::size_t>> within_bytes(std::uint64_t bytes) {
    std::vector<std::size_t> best, last;
    double best_kl = 0;
    for (int round = 0; round < max_rounds; ++round) {
      std::optional<std::vector<std::size_t>> picked = allocate(weighted(), bytes);
      if (!picked)
        return error{errc::invalid_argument,
                     "the tensors cannot have fewer than " + std::to_string(least_bytes(choices_)) + " bytes, and " +
                         std::to_string(bytes) + " are asked for",
                     "target"};
      if (*picked == last) break;
      last = *std::move(picked);
      FLYWHEEL_TRY(const evaluate::comparison c, compare(fit_, last));
      if (best.empty() || c.kl.value < best_kl) best = last, best_kl = c.kl.value;
      if (round + 1 < max_rounds) FLYWHEEL_CHECK(correct(last));
    }
    return best;
  }

  result<std::vector<std::size_t>> within_kl(double kl) {
    const std::uint64_t least = least_bytes(choices_);
    std::uint64_t most = 0;
    std::vector<std::size_t> best, largest;
    for (const std::vector<choice>& c : choices_) {
      const auto top =
          std::max_element(c.begin(), c.end(), [](const choice& a, const choice& b) { return a.bytes < b.bytes; });
      largest.push_back(static_cast<std::size_t>(top - c.begin()));
      most += top->bytes;
    }
    double ratio = 1;  // measured by predicted
    std::uint64_t low = least, high = most;
    for (int round = 0; round < 6 && low < high; ++round) {
      // The fewest bytes whose prediction, corrected, is within the target.
      std::uint64_t a = low, b = high;
      while (b - a > (most - least) / 1000 + 1) {
        const std::uint64_t middle = a + (b - a) / 2;
        const auto picked = allocate(weighted(), middle);
        (picked && predict(*picked) * ratio <= kl ? b : a) = middle;
      }
      const std::vector<std::size_t> picked = *allocate(weighted(), b);
      FLYWHEEL_TRY(const evaluate::comparison c, compare(fit_, picked));
      const double predicted = predict(picked);
      if (c.kl.value <= kl) {
        best = picked;
        high = b;
        if (c.kl.value >= 0.95 * kl) break;
      } else {
        low = b;
      }
      if (predicted > 0) ratio = c.kl.value / predicted;
      if (round == 0) {
        FLYWHEEL_CHECK(correct(picked));
        ratio = 1;
      }
    }
    if (!best.empty()) return best;
    // Nothing smaller does, or nothing is free to choose. The original itself diverges by nothing, whatever the
    // baseline's stored form makes of it.
    bool original = true;
    for (std::size_t i = 0; i < largest.size(); ++i)
      original = original && choices_[i][largest[i]].type == from_.tensors()[i].type;
    if (original) return largest;
    FLYWHEEL_TRY(const evaluate::comparison c, compare(fit_, largest));
    if (c.kl.value <= kl) return largest;
    return error{errc::invalid_argument,
                 "no choice of types has a KL divergence of " + short_number(kl) + "; the largest types have " +
                     short_number(c.kl.value),
                 "target"};
  }

  const io::archive& from_;
  const type_search_options& options_;
  context one_worker_;
  std::vector<std::optional<dtype>> fixed_;
  std::vector<std::vector<choice>> choices_;  ///< [tensors]; of those that are free, the first is the original.
  std::vector<std::size_t> free_;
  std::vector<unit> units_;
  std::vector<double> weight_of_;  ///< [tensors]: KL divergence per error.
  evaluate::baseline fit_, held_out_;
};

}  // namespace

result<type_search_result> search_types(const io::archive& from, std::span<const std::optional<dtype>> types,
                                        std::vector<evaluate::window> windows, const type_search_options& options) {
  search found(from, options);
  FLYWHEEL_CHECK(found.prepare(types, std::move(windows)));
  return found.run();
}

}  // namespace flywheel::inline v0::quant
