#include "flywheel/quant/transform.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/quant/quantize.hpp"
#include "src/model/basis.hpp"
#include "src/quant/edited_archive.hpp"
#include "src/quant/products.hpp"

namespace flywheel::inline v0::quant {
namespace {

constexpr float smallest_activation = 1e-4F;  ///< Of the largest channel: what is less counts as this.

/// Makes the largest times the smallest 1.
void normalize(std::vector<float>& scales) {
  const auto [least, most] = std::minmax_element(scales.begin(), scales.end());
  const float middle = std::sqrt(*least) * std::sqrt(*most);
  for (float& s : scales) s /= middle;
}

/// Per channel the largest of what its columns have.
std::vector<float> by_channel(const channel_link& link, const std::vector<float>& columns) {
  std::vector<float> out(as_size(link.channels), 0);
  for (std::size_t c = 0; c < columns.size(); ++c) {
    float& to = out[as_size(link.channel_of(static_cast<std::int64_t>(c)))];
    to = std::max(to, columns[c]);
  }
  return out;
}

std::vector<float> by_column(const channel_link& link, const std::vector<float>& channels, std::int64_t columns) {
  std::vector<float> out(as_size(columns));
  for (std::int64_t c = 0; c < columns; ++c) out[as_size(c)] = channels[as_size(link.channel_of(c))];
  return out;
}

/// Columns of a link's readers.
std::int64_t columns_of(const channel_link& link) {
  return link.channels * (link.of == channel_link::kind::values ? link.shared_by : 1);
}

error wrong_size(const std::string& where, std::size_t have, std::int64_t want) {
  return error{errc::invalid_argument, std::to_string(have) + " numbers for " + std::to_string(want) + " channels",
               where};
}

/// Sizes that what follows counts on.
result<void> check_link(const channel_link& link, const std::string& where) {
  const auto refuse = [&](const char* what) { return error{errc::invalid_argument, what, where}; };
  if (link.channels < 1) return refuse("a link has at least one channel");
  if (link.of != channel_link::kind::values) return {};
  if (link.head_dim < 1 || link.channels % link.head_dim != 0) return refuse("a link's channels are no whole heads");
  if (link.shared_by < 1 || link.shared_by > std::numeric_limits<std::int64_t>::max() / link.channels)
    return refuse("channel_link::shared_by is no number of heads");
  return {};
}

result<void> check_moments(const gram_matrix& moments, const std::string& reader, std::int64_t cols) {
  const std::string where = "second moments of " + reader;
  if (moments.n != cols) return wrong_size(where, as_size(moments.n), cols);
  if (moments.sums.size() != as_size(cols * cols)) return wrong_size(where, moments.sums.size(), cols * cols);
  for (std::int64_t c = 0; c < cols; ++c)
    if (const float own = moments.sums[as_size(c * cols + c)]; !(own >= 0) || !std::isfinite(own))
      return error{errc::invalid_argument,
                   "that of channel " + std::to_string(c) + " with itself is negative or no finite number", where};
  return {};
}

/// What a reader of a link is rounded to, and how much that costs.
class awq_reader {
 public:
  /// `activations` fit the tensor.
  static result<awq_reader> create(const io::archive& model, const std::string& name, const gram_matrix& activations,
                                   dtype type, const context& ctx) {
    FLYWHEEL_TRY(const io::tensor_info* tensor, find_tensor(model, name));
    const std::int64_t cols = tensor->dims.cols();
    awq_reader made{name, activations, type, tensor->dims.rows(), cols, f32_product(ctx)};
    FLYWHEEL_TRY(made.weights_, read_floats(model, *tensor));
    FLYWHEEL_TRY(made.moments_,
                 buffer::allocate(made.product_.panel_bytes(cols) * as_size(made.product_.panels(cols)), ctx.memory()));
    made.product_.pack(activations.sums.data(), cols, cols, cols, 1, made.moments_.mutable_data());
    return made;
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// tr(dW H dW^T) when the columns are rounded after being multiplied by s.
  result<double> error_with(const std::vector<float>& s, rounding method, const context& ctx) const {
    std::vector<float> changed(weights_.size()), importance(as_size(cols_));
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < cols_; ++c)
        changed[as_size(r * cols_ + c)] = weights_[as_size(r * cols_ + c)] * s[as_size(c)];
    for (std::int64_t c = 0; c < cols_; ++c)
      importance[as_size(c)] = moments().sums[as_size(c * cols_ + c)] / (s[as_size(c)] * s[as_size(c)]);
    const tensor_view view(dtype::f32, {rows_, cols_}, reinterpret_cast<const std::byte*>(changed.data()));
    recipe how;
    how.type = type_;
    how.method = method;
    how.importance = importance;
    FLYWHEEL_TRY(const tensor rounded, quantize(view, how, ctx));
    FLYWHEEL_CHECK(formats::decode(rounded.view(), changed));
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < cols_; ++c)
        changed[as_size(r * cols_ + c)] =
            changed[as_size(r * cols_ + c)] / s[as_size(c)] - weights_[as_size(r * cols_ + c)];
    return quadratic(changed, ctx);
  }

 private:
  awq_reader(std::string name, const gram_matrix& h, dtype type, std::int64_t rows, std::int64_t cols,
             f32_product product)
      : name_(std::move(name)), activations_(&h), type_(type), rows_(rows), cols_(cols), product_(product) {}
  [[nodiscard]] const gram_matrix& moments() const { return *activations_; }

  /// Sum over rows of e H e^T.
  result<double> quadratic(const std::vector<float>& e, const context& ctx) const {
    constexpr std::int64_t step = 48;
    const std::int64_t tasks = (rows_ + step - 1) / step;
    const std::size_t prepared = product_.prepared_bytes(step, cols_), out = as_size(step * cols_);
    const unsigned workers = ctx.executor().concurrency();
    FLYWHEEL_TRY(buffer room, buffer::allocate((prepared + out * sizeof(float)) * workers, ctx.memory()));
    std::vector<double> sums(as_size(tasks), 0);
    for_tasks(ctx.executor(), tasks, [&](unsigned slot, std::int64_t task) {
      const std::int64_t first = task * step, count = std::min(step, rows_ - first);
      std::byte* const own = room.mutable_data() + slot * (prepared + out * sizeof(float));
      auto* const y = reinterpret_cast<float*>(own + prepared);
      product_.prepare(e.data() + first * cols_, cols_, count, cols_, own);
      product_.run(own, count, moments_.data(), cols_, cols_, y, cols_, nullptr, 0);
      for (std::int64_t i = 0; i < count * cols_; ++i)
        sums[as_size(task)] += static_cast<double>(y[i]) * static_cast<double>(e[as_size(first * cols_ + i)]);
    });
    double sum = 0;
    for (const double s : sums) sum += s;
    return sum;
  }

  std::string name_;
  const gram_matrix* activations_;
  dtype type_;
  std::int64_t rows_, cols_;
  f32_product product_;
  buffer moments_;
  std::vector<float> weights_;
};

}  // namespace

result<io::archive> move_scales(const io::archive& model, const std::vector<channel_scales>& links) {
  return detail::guarded([&]() -> result<io::archive> {
    edited_content content;
    if (!links.empty()) content.mark = detail::scaled_key;
    for (const channel_scales& moved : links) {
      const channel_link& link = moved.link;
      const std::string where = link.made_by.empty() ? "link" : link.made_by[0].tensor;
      FLYWHEEL_CHECK(check_link(link, where));
      if (moved.scales.size() != as_size(link.channels)) return wrong_size(where, moved.scales.size(), link.channels);
      std::vector<float> inverse;
      for (const float s : moved.scales) {
        if (!(s > 0) || !std::isfinite(s) || !std::isfinite(1 / s))
          return error{errc::invalid_argument, "a scale is not positive and finite", where};
        inverse.push_back(1 / s);
      }
      for (const channel_link::part& part : link.made_by) {
        FLYWHEEL_TRY(const io::tensor_info* tensor, find_tensor(model, part.tensor));
        const std::size_t rank = tensor->dims.rank();
        tensor_edit& edit = content.edits[part.tensor];
        const std::int64_t size = rank > 1 ? tensor->dims[rank - 2] : tensor->dims.elements();
        if (part.first < 0 || part.first > size - link.channels)
          return wrong_size(part.tensor, as_size(size), link.channels);
        tensor_edit::multiply(rank > 1 ? edit.rows : edit.columns, size, part.first, inverse);
      }
      for (const std::string& reader : link.read_by) {
        FLYWHEEL_TRY(const io::tensor_info* tensor, find_tensor(model, reader));
        const std::int64_t cols = tensor->dims.cols();
        if (cols != columns_of(link)) return wrong_size(reader, as_size(cols), link.channels);
        tensor_edit::multiply(content.edits[reader].columns, cols, 0, by_column(link, moved.scales, cols));
      }
    }
    return edit_archive(model, std::move(content));
  });
}

result<io::archive> smooth(const io::archive& model,
                           const std::map<std::string, std::vector<float>, std::less<>>& peaks, float alpha) {
  return detail::guarded([&]() -> result<io::archive> {
    if (!(alpha >= 0 && alpha <= 1)) return error{errc::invalid_argument, "must be from 0 to 1", "alpha"};
    FLYWHEEL_TRY(std::vector<channel_link> links, find_channel_links(model));
    std::vector<channel_scales> moved;
    for (channel_link& link : links) {
      std::vector<float> active, heaviest;
      for (const std::string& reader : link.read_by) {
        FLYWHEEL_TRY(const io::tensor_info* tensor, find_tensor(model, reader));
        const std::int64_t cols = tensor->dims.cols();
        if (const auto seen = peaks.find(reader); seen != peaks.end()) {
          if (seen->second.size() != as_size(cols)) return wrong_size(reader, seen->second.size(), cols);
          active = by_channel(link, seen->second);
        }
        FLYWHEEL_TRY(const std::vector<float> w, read_floats(model, *tensor));
        std::vector<float> largest(as_size(cols), 0);
        for (std::size_t i = 0; i < w.size(); ++i)
          largest[i % as_size(cols)] = std::max(largest[i % as_size(cols)], std::fabs(w[i]));
        largest = by_channel(link, largest);
        heaviest.resize(largest.size(), 0);
        for (std::size_t i = 0; i < largest.size(); ++i) heaviest[i] = std::max(heaviest[i], largest[i]);
      }
      if (active.empty()) continue;
      const float floor_x = smallest_activation * *std::max_element(active.begin(), active.end());
      const float floor_w = smallest_activation * *std::max_element(heaviest.begin(), heaviest.end());
      if (!(floor_x > 0) || !(floor_w > 0)) continue;
      for (std::size_t i = 0; i < active.size(); ++i)
        active[i] = std::pow(std::max(active[i], floor_x), alpha) / std::pow(std::max(heaviest[i], floor_w), 1 - alpha);
      moved.push_back({std::move(link), std::move(active)});
    }
    return move_scales(model, moved);
  });
}

result<std::vector<channel_scales>> find_awq_scales(const io::archive& model, const moments_by_tensor& activations,
                                                    const awq_options& options) {
  return detail::guarded([&]() -> result<std::vector<channel_scales>> {
    FLYWHEEL_TRY(const context ctx, options.context.or_default());
    if (options.steps < 1) return error{errc::invalid_argument, "must be at least 1", "awq_options::steps"};
    FLYWHEEL_TRY(std::vector<channel_link> links, find_channel_links(model));
    std::vector<channel_scales> found;
    for (std::size_t l = 0; l < links.size(); ++l) {
      channel_link& link = links[l];
      if (options.control.progress) options.control.progress(l, links.size(), "channel scales");
      std::vector<awq_reader> readers;
      std::vector<float> active;
      for (const std::string& name : link.read_by) {
        const auto seen = activations.find(name);
        const dtype type = options.type ? options.type(name) : dtype::q4_k;
        if (seen == activations.end() || !seen->second) continue;
        const tensor_moments& moments = *seen->second;
        const gram_matrix& all = moments.matrices.size() == 1 ? moments.matrices[0] : moments.all;
        FLYWHEEL_CHECK(check_moments(all, name, columns_of(link)));
        if (active.empty()) {
          std::vector<float> rms(as_size(all.n));
          for (std::int64_t c = 0; c < all.n; ++c) rms[as_size(c)] = std::sqrt(all.sums[as_size(c * all.n + c)]);
          active = by_channel(link, rms);
        }
        if (!can_quantize(type)) continue;
        FLYWHEEL_TRY(awq_reader reader, awq_reader::create(model, name, all, type, ctx));
        readers.push_back(std::move(reader));
      }
      if (readers.empty()) continue;
      const float floor = smallest_activation * *std::max_element(active.begin(), active.end());
      if (!(floor > 0)) continue;
      double least = 0;
      std::optional<std::vector<float>> best;
      for (std::int32_t step = 0; step < options.steps; ++step) {
        if (options.control.stopped()) return error{errc::cancelled, "cancelled", {}};
        const float exponent = static_cast<float>(step) / static_cast<float>(options.steps);
        std::vector<float> scales;
        for (const float a : active) scales.push_back(std::pow(std::max(a, floor), exponent));
        normalize(scales);
        const std::vector<float> columns = by_column(link, scales, columns_of(link));
        double sum = 0;
        for (const awq_reader& reader : readers) {
          const auto part = reader.error_with(columns, options.method, ctx);
          if (!part) return error{part.error().code, part.error().message, "tensor '" + reader.name() + "'"};
          sum += *part;
        }
        if (!best || sum < least) {
          least = sum;
          best = std::move(scales);
        }
      }
      found.push_back({std::move(link), *std::move(best)});
    }
    return found;
  });
}

}  // namespace flywheel::inline v0::quant
