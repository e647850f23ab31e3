#include "cli/quality_plot.hpp"

#include <algorithm>
#include <cmath>

#include "cli/output.hpp"
#include "cli/svg.hpp"

namespace flywheel::cli {
namespace {

constexpr double page_width = 1000, page_height = 640, plot_left = 84, plot_top = 84, plot_wide = 880, plot_high = 490;
constexpr double least_kl = 1e-9;  ///< What is drawn for a model that does not differ.
constexpr double letter = 6.4;     ///< Width of an average letter at 12 pixels.

struct box {
  double left, top, right, bottom;
  [[nodiscard]] bool overlaps(const box& o) const {
    return left < o.right && o.left < right && top < o.bottom && o.top < bottom;
  }
};

class quality_drawing {
 public:
  explicit quality_drawing(std::span<const quality_point> points) : points_(points) {
    double low = HUGE_VAL, high = 0;
    most_bytes_ = 0;
    least_bytes_ = HUGE_VAL;
    for (const quality_point& p : points) {
      low = std::min(low, kl_of(p));
      high = std::max(high, kl_of(p));
      least_bytes_ = std::min(least_bytes_, megabytes(p));
      most_bytes_ = std::max(most_bytes_, megabytes(p));
    }
    const double room = std::max(most_bytes_ - least_bytes_, most_bytes_ * 0.1) * 0.08;
    least_bytes_ = std::max(0.0, least_bytes_ - room);
    most_bytes_ += 1.6 * room;  // names stand on the right of points
    y_ = {low / 1.8, std::max(high * 1.8, low * 5), plot_top + plot_high, -plot_high};
  }

  std::string text(const std::string& title, const std::string& subtitle) {
    out_ = svg::begin(page_width, page_height);
    axes();
    front();
    dots();
    names();
    out_ += svg::words({24, 32}, title, "font-size=\"18\" font-weight=\"bold\" fill=\"#111\"");
    out_ += svg::words({24, 54}, subtitle, "fill=\"#444\"");
    return out_ + svg::end;
  }

 private:
  static double kl_of(const quality_point& p) { return std::max(p.kl, least_kl); }
  static double megabytes(const quality_point& p) { return static_cast<double>(p.bytes) / 1e6; }
  [[nodiscard]] double x(double mb) const {
    return plot_left + plot_wide * (mb - least_bytes_) / (most_bytes_ - least_bytes_);
  }
  [[nodiscard]] svg::point place(const quality_point& p) const { return {x(megabytes(p)), y_(kl_of(p))}; }

  void axes() {
    svg::each_tick(y_, [&](double v, int digit) {
      out_ += svg::line({plot_left, y_(v)}, {plot_left + plot_wide, y_(v)},
                        digit == 1 ? "stroke=\"#ccc\"" : "stroke=\"#f0f0f0\"");
      if (digit != 1 && digit != 2 && digit != 5) return;
      const int digits = std::max(0, -static_cast<int>(std::floor(std::log10(v * 1.0000001))));
      out_ += svg::words({plot_left - 8, y_(v) + 4}, decimal(v, digits), "text-anchor=\"end\" fill=\"#444\"");
    });
    const double step = svg::tick_step(most_bytes_ - least_bytes_, 9);
    const int digits = std::max(0, -static_cast<int>(std::floor(std::log10(step * 1.0000001))));
    for (double i = std::ceil(least_bytes_ / step); i * step <= most_bytes_; ++i) {
      out_ += svg::line({x(i * step), plot_top}, {x(i * step), plot_top + plot_high}, "stroke=\"#e4e4e4\"");
      out_ += svg::words({x(i * step), plot_top + plot_high + 18}, decimal(i * step, digits),
                         "text-anchor=\"middle\" fill=\"#444\"");
    }
    out_ += svg::words({plot_left + plot_wide / 2, plot_top + plot_high + 42}, "size of the file, MB",
                       "text-anchor=\"middle\" fill=\"#222\"");
    out_ += svg::words({plot_left - 60, plot_top - 10}, "mean KL divergence from the original, nats", "fill=\"#222\"");
  }

  void front() {
    std::string path;
    for (const std::size_t i : pareto_front(points_)) {
      const svg::point at = place(points_[i]);
      path += svg::number(at.x) + "," + svg::number(at.y) + " ";
      on_front_.push_back(i);
    }
    out_ += "<polyline points=\"" + path +
            "\" fill=\"none\" stroke=\"hsl(210,70%,45%)\" stroke-width=\"2\" stroke-opacity=\"0.5\"/>\n";
  }

  [[nodiscard]] std::string colour_of(std::size_t i) const {
    return std::count(on_front_.begin(), on_front_.end(), i) != 0 ? "hsl(210,70%,38%)" : "#888";
  }

  void dots() {
    for (std::size_t i = 0; i < points_.size(); ++i) {
      const quality_point& p = points_[i];
      const svg::point at = place(p);
      const std::string paint = colour_of(i);
      const double error = std::isnan(p.error) ? 0 : p.error;
      const double above = y_(kl_of(p) + error), below = y_(std::max(kl_of(p) - error, y_.low));
      out_ += svg::line({at.x, above}, {at.x, below}, "stroke=\"" + paint + "\" stroke-width=\"1.5\"");
      out_ +=
          "<circle" + svg::attribute("cx", at.x) + svg::attribute("cy", at.y) + " r=\"4\" fill=\"" + paint + "\"/>\n";
      taken_.push_back({at.x - 5, std::min(above, at.y - 5), at.x + 5, std::max(below, at.y + 5)});
    }
  }

  /// Each name goes to the nearest free place around its point, with a line to it when that is not beside it.
  void names() {
    for (std::size_t i = 0; i < points_.size(); ++i) {
      const svg::point at = place(points_[i]);
      const double width = letter * static_cast<double>(display_width(points_[i].name)), half = 8;
      svg::point found{at.x + 9, at.y};
      bool beside = true;
      const auto free = [&](double radius, double angle) {
        const double cx = at.x + radius * std::cos(angle), cy = at.y + radius * std::sin(angle);
        const double left = std::cos(angle) > 0.3 ? cx : std::cos(angle) < -0.3 ? cx - width : cx - width / 2;
        const box b{left, cy - half, left + width, cy + half};
        if (b.left < plot_left || b.right > plot_left + plot_wide || b.top < plot_top ||
            b.bottom > plot_top + plot_high)
          return false;
        if (std::any_of(taken_.begin(), taken_.end(), [&](const box& o) { return b.overlaps(o); })) return false;
        found = {left, cy};
        return true;
      };
      const auto search = [&] {
        for (double radius = 9; radius < 200; radius += 10)
          for (const double angle : {-0.6, 0.0, 0.6, 3.14159, -1.5708, 1.5708, -2.5, 2.5})
            if (free(std::abs(std::sin(angle)) > 0.9 ? radius + 6 : radius, angle)) {
              beside = radius < 20;
              return;
            }
      };
      search();
      taken_.push_back({found.x, found.y - half, found.x + width, found.y + half});
      if (!beside)
        out_ += svg::line(at, {std::clamp(at.x, found.x, found.x + width), found.y},
                          "stroke=\"" + colour_of(i) + "\" stroke-opacity=\"0.4\"");
      out_ += svg::words({found.x, found.y + 4}, points_[i].name,
                         "fill=\"" + colour_of(i) + "\" stroke=\"white\" stroke-width=\"3\" paint-order=\"stroke\"");
    }
  }

  std::span<const quality_point> points_;
  double least_bytes_, most_bytes_;
  svg::log_scale y_{};
  std::vector<std::size_t> on_front_;
  std::vector<box> taken_;
  std::string out_;
};

}  // namespace

std::vector<std::size_t> pareto_front(std::span<const quality_point> points) {
  std::vector<std::size_t> order(points.size()), front;
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return points[a].bytes != points[b].bytes ? points[a].bytes < points[b].bytes : points[a].kl < points[b].kl;
  });
  for (const std::size_t i : order)
    if (front.empty() || points[i].kl < points[front.back()].kl) front.push_back(i);
  return front;
}

std::string quality_svg(std::span<const quality_point> points, const std::string& title, const std::string& subtitle) {
  return quality_drawing(points).text(title, subtitle);
}

}  // namespace flywheel::cli
