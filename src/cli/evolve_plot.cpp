#include "cli/evolve_plot.hpp"

#include <algorithm>
#include <cmath>

#include "cli/output.hpp"
#include "cli/svg.hpp"

namespace flywheel::cli {
namespace {

constexpr double evolve_width = 1000, evolve_left = 84, evolve_wide = 700, search_top = 96, search_high = 300;
constexpr double legend_left = evolve_left + evolve_wide + 22, final_top = search_top + search_high + 112;
constexpr double test_high = 58, label_high = 16;
constexpr const char* best_paint = "#111";
constexpr const char* start_paint = "#d97706";
constexpr const char* text_paints[] = {"#2563eb", "#16a34a", "#db2777", "#7c3aed", "#0891b2", "#ca8a04"};

/// A linear axis: values from `low` to `high` over `length` pixels from `origin`.
struct linear_scale {
  double low, high, origin, length;
  [[nodiscard]] double operator()(double v) const {
    return origin + length * (std::clamp(v, low, high) - low) / (high - low);
  }
};

template <class F>
void each_step(const linear_scale& s, int count, F&& draw) {
  const double step = svg::tick_step(s.high - s.low, count);
  const int digits = std::max(0, -static_cast<int>(std::floor(std::log10(step * 1.0000001))));
  for (double i = std::ceil(s.low / step - 1e-9); i * step <= s.high + 1e-9 * step; ++i)
    draw(i * step, decimal(i * step + 0.0, digits));
}

class evolution_drawing {
 public:
  explicit evolution_drawing(const evolve_drawing& d) : d_(d) {}

  std::string text() {
    const double height = final_top + test_high * static_cast<double>(d_.tests.size()) + 62;
    out_ = svg::begin(evolve_width, height);
    out_ += svg::words({24, 34}, d_.title, "font-size=\"18\" font-weight=\"bold\" fill=\"#111\"");
    out_ += svg::words({24, 56}, d_.subtitle, "fill=\"#444\"");
    search();
    finals();
    return out_ + svg::end;
  }

 private:
  void dot(svg::point at, double radius, const std::string& style) {
    out_ += "<circle" + svg::attribute("cx", at.x) + svg::attribute("cy", at.y) + svg::attribute("r", radius) + " " +
            style + "/>\n";
  }
  void curve(const std::vector<svg::point>& points, const std::string& style) {
    std::string path;
    for (const svg::point& p : points) path += svg::number(p.x) + "," + svg::number(p.y) + " ";
    out_ += "<polyline points=\"" + path + "\" fill=\"none\" stroke-linejoin=\"round\" " + style + "/>\n";
  }

  /// Candidates as dots, the best so far and each text's figure of it as lines.
  void search() {
    const std::size_t n = d_.values.size(), lines = d_.texts.size();
    std::vector<std::size_t> best(n);  // so far
    for (std::size_t i = 1; i < n; ++i) best[i] = d_.values[i] > d_.values[best[i - 1]] ? i : best[i - 1];
    std::vector<double> sorted;
    for (const double v : d_.values)
      if (std::isfinite(v)) sorted.push_back(v);
    sorted.push_back(d_.start);
    std::sort(sorted.begin(), sorted.end());
    double low = sorted[sorted.size() / 10], high = sorted.back();  // the worst tenth lies on the lower edge
    for (const std::size_t b : best)
      for (const double f : d_.text_figures[b])
        if (std::isfinite(f)) high = std::max(high, f), low = std::min(low, f);
    const double room = std::max(high - low, 1e-6) * 0.06;
    const linear_scale y{low - room, high + room, search_top + search_high, -search_high};
    const linear_scale x{0, static_cast<double>(std::max<std::size_t>(n, 2)), evolve_left, evolve_wide};
    const auto at = [&](double i, double v) { return svg::point{x(i), y(v)}; };

    out_ += svg::words({evolve_left - 60, search_top - 14}, "search: " + d_.figure, "fill=\"#222\"");
    each_step(y, 7, [&](double v, const std::string& label) {
      out_ += svg::line({evolve_left, y(v)}, {evolve_left + evolve_wide, y(v)}, "stroke=\"#e8e8e8\"");
      out_ += svg::words({evolve_left - 8, y(v) + 4}, label, "text-anchor=\"end\" fill=\"#444\"");
    });
    each_step(x, 8, [&](double v, const std::string& label) {
      out_ += svg::words({x(v), search_top + search_high + 18}, label, "text-anchor=\"middle\" fill=\"#444\"");
    });
    out_ += svg::words({evolve_left + evolve_wide / 2, search_top + search_high + 40}, "evaluations",
                       "text-anchor=\"middle\" fill=\"#222\"");
    out_ += svg::line({evolve_left, y(d_.start)}, {evolve_left + evolve_wide, y(d_.start)},
                      std::string("stroke=\"") + start_paint + "\" stroke-dasharray=\"5 4\" stroke-width=\"1.5\"");
    for (std::size_t i = 0; i < n; ++i)
      if (std::isfinite(d_.values[i]))
        dot(at(static_cast<double>(i) + 0.5, d_.values[i]), 2.1, "fill=\"#9ca3af\" fill-opacity=\"0.55\"");
    std::vector<svg::point> means;
    for (std::size_t g = 0; d_.population > 0 && (g + 1) * d_.population <= n; ++g) {
      double sum = 0, counted = 0;
      for (std::size_t i = g * d_.population; i < (g + 1) * d_.population; ++i)
        if (std::isfinite(d_.values[i])) sum += d_.values[i], ++counted;
      if (counted > 0)
        means.push_back(at((static_cast<double>(g) + 0.5) * static_cast<double>(d_.population), sum / counted));
    }
    curve(means, "stroke=\"#9ca3af\" stroke-width=\"1.5\"");
    const auto steps = [&](const auto& value_at) {
      std::vector<svg::point> points;
      for (std::size_t i = 0; i < n; ++i) {
        const double v = value_at(best[i]);
        if (!std::isfinite(v)) continue;
        points.push_back(at(static_cast<double>(i), v));
        points.push_back(at(static_cast<double>(i + 1), v));
      }
      return points;
    };
    for (std::size_t t = 0; t < lines; ++t)
      curve(steps([&](std::size_t i) { return d_.text_figures[i][t]; }),
            "stroke=\"" + paint(t) + "\" stroke-width=\"1.6\" stroke-opacity=\"0.8\"");
    curve(steps([&](std::size_t i) { return d_.values[i]; }), "stroke=\"#111\" stroke-width=\"2.6\"");

    double top = search_top + 10;
    const auto legend = [&](const std::string& colour, double width, const std::string& name, bool dashed = false) {
      out_ += svg::line({legend_left, top - 4}, {legend_left + 24, top - 4},
                        "stroke=\"" + colour + "\" stroke-width=\"" + svg::number(width) + "\"" +
                            (dashed ? " stroke-dasharray=\"5 4\"" : ""));
      out_ += svg::words({legend_left + 32, top}, name, "fill=\"#222\"");
      top += 22;
    };
    legend(best_paint, 2.6, "best so far");
    legend("#9ca3af", 1.5, "mean of a generation");
    dot({legend_left + 12, top - 4}, 2.6, "fill=\"#9ca3af\"");
    out_ += svg::words({legend_left + 32, top}, "candidate", "fill=\"#222\"");
    top += 22;
    legend(start_paint, 1.5, "recipe as given", true);
    for (std::size_t t = 0; t < lines; ++t) legend(paint(t), 1.6, "best on " + shortened(d_.texts[t], 18));
  }

  [[nodiscard]] static std::string paint(std::size_t i) { return text_paints[i % std::size(text_paints)]; }

  /// A line for each text: parents hollow, the recipe as given, the best.
  void finals() {
    double low = HUGE_VAL, high = -HUGE_VAL;
    for (const evolve_drawing::row& r : d_.rows)
      for (const double f : r.figures)
        if (std::isfinite(f)) low = std::min(low, f), high = std::max(high, f);
    if (low > high) return;
    // Parents can be far worse than the base away from home; what is merged is what the axis is for.
    low = std::max(low, high - 2.2 * std::max(high, 0.05));
    const double room = std::max(high - low, 1e-6) * 0.05;
    const linear_scale x{low - room, high + room, evolve_left + 40, evolve_wide - 40};
    const double bottom = final_top + test_high * static_cast<double>(d_.tests.size());
    out_ +=
        svg::words({evolve_left - 60, final_top - 24}, "final: " + d_.figure + ", " + d_.final_note, "fill=\"#222\"");
    each_step(x, 8, [&](double v, const std::string& label) {
      const bool mark = std::abs(v) < 1e-9;
      out_ += svg::line({x(v), final_top - 10}, {x(v), bottom}, mark ? "stroke=\"#9ca3af\"" : "stroke=\"#e8e8e8\"");
      out_ += svg::words({x(v), bottom + 18}, label, "text-anchor=\"middle\" fill=\"#444\"");
    });
    for (std::size_t t = 0; t < d_.tests.size(); ++t) {
      const double y = final_top + test_high * (static_cast<double>(t) + 0.5);
      out_ += svg::words({evolve_left + 24, y + 4}, shortened(d_.tests[t], 14), "text-anchor=\"end\" fill=\"#222\"");
      out_ += svg::line({x(x.low), y}, {x(x.high), y}, "stroke=\"#d1d5db\"");
      for (std::size_t r = 0; r < d_.rows.size(); ++r) {
        const double v = d_.rows[r].figures[t];
        if (!std::isfinite(v)) continue;
        const bool last = r + 1 == d_.rows.size();
        const svg::point p{x(v), y};
        if (v < x.low && d_.rows[r].parent) {  // beyond the edge
          out_ += svg::words({p.x, y + 4.5}, "◂", "text-anchor=\"middle\" fill=\"#6b7280\"");
          continue;
        }
        if (d_.rows[r].parent)
          dot(p, 5, "fill=\"white\" stroke=\"" + paint(r == 0 ? 5 : r - 1) + "\" stroke-width=\"2\"");
        else
          dot(p, last ? 6.5 : 5.5, std::string("fill=\"") + (last ? best_paint : start_paint) + "\"");
        if (last)
          out_ += svg::words({p.x, y - 12}, decimal(v, 2), "text-anchor=\"middle\" font-weight=\"bold\" fill=\"#111\"");
      }
    }
    double top = final_top;
    for (std::size_t r = 0; r < d_.rows.size(); ++r) {
      const bool last = r + 1 == d_.rows.size();
      if (d_.rows[r].parent)
        dot({legend_left + 12, top - 4}, 5,
            "fill=\"white\" stroke=\"" + paint(r == 0 ? 5 : r - 1) + "\" stroke-width=\"2\"");
      else
        dot({legend_left + 12, top - 4}, last ? 6.5 : 5.5,
            std::string("fill=\"") + (last ? best_paint : start_paint) + "\"");
      out_ += svg::words({legend_left + 32, top}, shortened(d_.rows[r].name, 22), "fill=\"#222\"");
      top += label_high + 6;
    }
  }

  const evolve_drawing& d_;
  std::string out_;
};

}  // namespace

std::string evolve_svg(const evolve_drawing& of) { return evolution_drawing(of).text(); }

}  // namespace flywheel::cli
