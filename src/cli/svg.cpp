#include "cli/svg.hpp"

#include <cmath>

#include "cli/output.hpp"

namespace flywheel::cli::svg {

std::string begin(double width, double height) {
  return "<svg xmlns=\"http://www.w3.org/2000/svg\"" + attribute("width", width) + attribute("height", height) +
         " viewBox=\"0 0 " + number(width) + " " + number(height) +
         "\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" "
         "fill=\"white\"/>\n";
}

std::string number(double value) { return decimal(value, 1); }

std::string attribute(const char* name, double value) { return std::string(" ") + name + "=\"" + number(value) + "\""; }

std::string line(point a, point b, const std::string& style) {
  return "<line" + attribute("x1", a.x) + attribute("y1", a.y) + attribute("x2", b.x) + attribute("y2", b.y) + " " +
         style + "/>\n";
}

std::string words(point at, const std::string& text, const std::string& style) {
  std::string safe;
  for (const char c : text) safe += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return "<text" + attribute("x", at.x) + attribute("y", at.y) + " " + style + ">" + safe + "</text>\n";
}

double tick_step(double range, int count) {
  const double rough = range / count, decade = std::pow(10, std::floor(std::log10(rough)));
  for (const double digit : {1.0, 2.0, 5.0})
    if (decade * digit >= rough) return decade * digit;
  return decade * 10;
}

}  // namespace flywheel::cli::svg
