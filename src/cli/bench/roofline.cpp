#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cli/bench/hardware.hpp"
#include "cli/output.hpp"
#include "cli/svg.hpp"

namespace flywheel::cli {
namespace {

using measure::hardware_report;
using measure::product_figures;
using svg::attribute;
using svg::line;
using svg::number;
using svg::point;
using svg::words;

// The drawing, in pixels. Labels of single rows stand on the left of the plot, those of many rows on its right.
constexpr double width = 1280, height = 800, left = 250, top = 90, plot_width = 740, plot_height = 600;
constexpr double line_height = 15;

/// More formats than this are drawn without paths and numbers of rows, which would cover each other.
constexpr std::size_t few_formats = 8;

/// Hues a golden angle apart, dark and darker in turns: neighbours in the list differ most.
std::string colour_of(std::size_t i) {
  return "hsl(" + decimal(std::fmod(210 + 137.508 * static_cast<double>(i), 360), 0) + ",70%," +
         (i % 2 == 0 ? "45%" : "32%") + ")";
}

struct label {
  double at;  ///< y of the point it belongs to.
  point target;
  std::string text;
  std::string colour;
  double y = 0;  ///< Where it is written.
};

/// Moves labels apart: each as near to its point as those above it allow, and the whole column within the plot.
void spread_labels(std::vector<label>& labels) {
  std::sort(labels.begin(), labels.end(), [](const label& a, const label& b) { return a.at < b.at; });
  double from = top;
  for (label& l : labels) from = (l.y = std::max(l.at, from)) + line_height;
  double to = top + plot_height;
  for (auto l = labels.rbegin(); l != labels.rend(); ++l) to = (l->y = std::min(l->y, to)) - line_height;
}

std::string short_type(dtype type) {
  std::string text(to_string(type));
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

class drawing {
 public:
  explicit drawing(const hardware_report& report) : report_(report) {
    for (const product_figures& p : report.products) {
      const product_figures& first = report.products.front();
      if (p.shape.n == first.shape.n && p.shape.k == first.shape.k) points_.push_back(&p);
    }
    double least_x = 1e300, most_x = 0, least_y = 1e300;
    for (const product_figures* p : points_) {
      least_x = std::min(least_x, intensity(*p));
      most_x = std::max(most_x, intensity(*p));
      least_y = std::min(least_y, rate(*p));
    }
    const roofs_t& roofs = report.best();
    const double most_y = std::max({roofs.int8, roofs.f32, roofs.bf16});
    x_ = {least_x / 2, most_x * 2, left, plot_width};
    y_ = {least_y / 2, std::max(most_y * 1.6, least_y * 10), top + plot_height, -plot_height};
  }

  std::string svg() {
    out_ = svg::begin(width, height);
    axes();
    products();
    roofs();
    heading();
    return out_ + svg::end;
  }

 private:
  using roofs_t = measure::roofs;
  static double intensity(const product_figures& p) { return p.operations / p.bytes; }
  static double rate(const product_figures& p) { return p.operations / p.seconds.min; }
  [[nodiscard]] point place(double x, double y) const { return {x_(x), y_(y)}; }

  void axes() {
    svg::each_tick(x_, [&](double v, int digit) {
      out_ += line({x_(v), top}, {x_(v), top + plot_height}, digit == 1 ? "stroke=\"#ccc\"" : "stroke=\"#eee\"");
      if (digit == 1 || digit == 2 || digit == 5)
        out_ += words({x_(v), top + plot_height + 18}, v < 1 ? decimal(v, v < 0.1 ? 2 : 1) : decimal(v, 0),
                      "text-anchor=\"middle\" fill=\"#444\"");
    });
    svg::each_tick(y_, [&](double v, int digit) {
      out_ += line({left, y_(v)}, {left + plot_width, y_(v)}, digit == 1 ? "stroke=\"#ccc\"" : "stroke=\"#eee\"");
      if (digit == 1 || digit == 2 || digit == 5)
        out_ += words({left + 4, y_(v) - 3},
                      v < 1e12 ? decimal(v / 1e9, v < 1e9 ? 2 : 0) + " G" : decimal(v / 1e12, 0) + " T",
                      "fill=\"#888\" font-size=\"11\"");
    });
    out_ += words({left + plot_width / 2, top + plot_height + 38},
                  "operations per byte of packed weights (2 x rows of the product / bytes per weight)",
                  "text-anchor=\"middle\" fill=\"#222\"");
    out_ += words({left, top - 8}, "operations per second", "fill=\"#222\"");
  }

  /// Memory's line up to the highest peak, and every peak from where memory allows it.
  void roofs() {
    const roofs_t& r = report_.best();
    struct {
      const char* name;
      double rate;
    } peaks[] = {{"int8 dots", r.int8}, {"f32 multiply-adds", r.f32}, {"bf16 dots", r.bf16}};
    double highest = 0;
    for (const auto& peak : peaks) {
      if (peak.rate <= 0) continue;
      highest = std::max(highest, peak.rate);
      const double from = std::clamp(peak.rate / r.read, x_.low, x_.high);
      out_ += line(place(from, peak.rate), place(x_.high, peak.rate), "stroke=\"#222\" stroke-width=\"1.6\"");
      out_ += words({left + plot_width - 6, y_(peak.rate) - 5},
                    std::string(peak.name) + " " + decimal(peak.rate / 1e9, 0) + " GOP/s", halo("end"));
    }
    const double from = std::max(x_.low, y_.low / r.read), to = std::min(x_.high, highest / r.read);
    if (from >= to) return;
    const point a = place(from, from * r.read), b = place(to, to * r.read);
    out_ += line(a, b, "stroke=\"#222\" stroke-width=\"1.6\"");
    const double middle = std::sqrt(from * to), angle = std::atan2(b.y - a.y, b.x - a.x) * 180 / 3.14159265;
    const point at = place(middle, middle * r.read);
    out_ += words({0, -7}, "reading " + decimal(r.read / 1e9, 1) + " GB/s",
                  halo("middle") + " transform=\"translate(" + number(at.x) + " " + number(at.y) + ") rotate(" +
                      number(angle) + ")\"");
  }

  static std::string halo(const char* anchor) {
    return std::string("text-anchor=\"") + anchor +
           "\" fill=\"#222\" stroke=\"white\" stroke-width=\"3\" paint-order=\"stroke\" font-weight=\"bold\"";
  }

  void products() {
    std::vector<label> few, many;
    std::size_t formats = 1;
    for (std::size_t i = 1; i < points_.size(); ++i) formats += points_[i]->weight != points_[i - 1]->weight;
    const bool crowded = formats > few_formats;
    std::size_t colour = 0;
    for (std::size_t i = 0; i < points_.size(); ++colour) {
      const dtype type = points_[i]->weight;
      const std::string paint = colour_of(colour);
      std::string path;
      const std::size_t first = i;
      for (; i < points_.size() && points_[i]->weight == type; ++i) {
        const product_figures& p = *points_[i];
        const point at = place(intensity(p), rate(p));
        path += number(at.x) + "," + number(at.y) + " ";
        out_ += "<circle" + attribute("cx", at.x) + attribute("cy", at.y) + " r=\"3.5\" fill=\"" + paint +
                "\"><title>" + p.kernel + ", M = " + std::to_string(p.m) + ": " + decimal(rate(p) / 1e9, 1) +
                " GOP/s, " + decimal(p.pct_roof(), 0) + "% of the roof</title></circle>\n";
        if (!crowded)
          out_ += words({at.x, at.y + 13}, std::to_string(p.m),
                        std::string("font-size=\"8\" text-anchor=\"middle\" fill=\"") + paint + "\"");
      }
      if (!crowded)
        out_ += "<polyline points=\"" + path + "\" fill=\"none\" stroke=\"" + paint + "\" stroke-opacity=\"0.4\"/>\n";
      const auto tell = [&](const product_figures& p, std::vector<label>& side) {
        const point at = place(intensity(p), rate(p));
        const std::string figure = p.memory_bound() ? decimal(p.bytes / p.seconds.min / 1e9, 1) + " GB/s"
                                                    : decimal(rate(p) / 1e9, 0) + " GOP/s";
        side.push_back(
            {at.y, at,
             short_type(type) + " M=" + std::to_string(p.m) + "  " + figure + "  " + decimal(p.pct_roof(), 0) + "%",
             paint});
      };
      tell(*points_[first], few);
      if (i - first > 1) tell(*points_[i - 1], many);
    }
    column(few, left - 30, "end", left);
    column(many, left + plot_width + 30, "start", left + plot_width);
  }

  void column(std::vector<label>& labels, double x, const char* anchor, double edge) {
    spread_labels(labels);
    for (const label& l : labels) {
      const std::string style = std::string("fill=\"none\" stroke-opacity=\"0.35\" stroke=\"") + l.colour + "\"";
      out_ += "<polyline points=\"" + number(x) + "," + number(l.y) + " " + number(edge) + "," + number(l.y) + " " +
              number(l.target.x) + "," + number(l.target.y) + "\" " + style + "/>\n";
      out_ += words({x + (x < edge ? -4 : 4), l.y + 4}, l.text,
                    std::string("text-anchor=\"") + anchor + "\" fill=\"" + l.colour + "\"");
    }
  }

  void heading() {
    const product_figures& first = report_.products.front();
    out_ += words({24, 32},
                  "Roofline: " + report_.isa.cpu + ", " + std::string(report_.isa.selected) + ", " +
                      std::to_string(report_.threads) + (report_.threads == 1 ? " thread" : " threads"),
                  "font-size=\"18\" font-weight=\"bold\" fill=\"#111\"");
    out_ += words({24, 54},
                  "Products of M rows with weights [" + std::to_string(first.shape.n) + ", " +
                      std::to_string(first.shape.k) +
                      "], best repetition. Black: roofs, best burst of the run. "
                      "Percent: of the lower roof there. Left: fewest rows, right: most.",
                  "fill=\"#444\"");
    legend();
  }

  /// Colours by format, in columns below the axis.
  void legend() {
    std::vector<dtype> types;
    for (const product_figures* p : points_)
      if (types.empty() || types.back() != p->weight) types.push_back(p->weight);
    constexpr std::size_t per_row = 10;
    for (std::size_t i = 0; i < types.size(); ++i) {
      const double x = 60 + static_cast<double>(i % per_row) * 118;
      const double y = top + plot_height + 62 + static_cast<double>(i / per_row) * 18;
      out_ += "<circle" + attribute("cx", x) + attribute("cy", y) + " r=\"4\" fill=\"" + colour_of(i) + "\"/>\n" +
              words({x + 9, y + 4}, short_type(types[i]), "fill=\"#222\"");
    }
  }

  const hardware_report& report_;
  std::vector<const product_figures*> points_;
  svg::log_scale x_{}, y_{};
  std::string out_;
};

}  // namespace

std::string roofline_svg(const measure::hardware_report& report) { return drawing(report).svg(); }

}  // namespace flywheel::cli
