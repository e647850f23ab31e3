#include "cli/lineage_drawing.hpp"

#include <algorithm>
#include <vector>

#include "cli/output.hpp"
#include "cli/svg.hpp"

namespace flywheel::cli {
namespace {

constexpr double box_width = 264, box_height = 78, gap_x = 84, gap_y = 20, margin = 32, heading = 62;
constexpr std::size_t letters_in_name = 30, letters_in_line = 42;

/// A model, placed.
struct lineage_box {
  const adapt::lineage* model = nullptr;
  std::size_t generation = 0, number = 0;  ///< Number: its place among the states.
  double y = 0;                            ///< Of the middle.
  std::vector<std::size_t> parents;
};

class lineage_layout {
 public:
  explicit lineage_layout(const adapt::lineage& of) { place(of, 0); }
  [[nodiscard]] const std::vector<lineage_box>& boxes() const { return boxes_; }
  [[nodiscard]] double height() const { return next_ - gap_y; }
  [[nodiscard]] std::size_t generations() const { return generations_; }

 private:
  /// Models without parents one below the other, the others in the middle of theirs.
  std::size_t place(const adapt::lineage& model, std::size_t generation) {
    const std::size_t at = boxes_.size();
    boxes_.push_back({&model, generation, at, 0, {}});
    generations_ = std::max(generations_, generation + 1);
    std::vector<std::size_t> parents;
    for (const adapt::lineage& parent : model.parents) parents.push_back(place(parent, generation + 1));
    if (parents.empty()) {
      boxes_[at].y = next_ + box_height / 2;
      next_ += box_height + gap_y;
    } else {
      boxes_[at].y = (boxes_[parents.front()].y + boxes_[parents.back()].y) / 2;
    }
    boxes_[at].parents = std::move(parents);
    return at;
  }
  std::vector<lineage_box> boxes_;
  double next_ = 0;
  std::size_t generations_ = 0;
};

/// Hue of a role: what the model is to its child.
const char* colour_of(const lineage_box& box) {
  if (box.generation == 0) return "hsl(262,48%,47%)";
  if (box.model->role == "base") return "hsl(212,62%,42%)";
  if (box.model->role == "adapter") return "hsl(28,80%,42%)";
  return "hsl(168,62%,32%)";
}

svg::point left_of(const lineage_box& box) {
  return {margin + static_cast<double>(box.generation) * (box_width + gap_x), heading + margin + box.y};
}

std::string edge(const lineage_box& child, const lineage_box& parent) {
  const svg::point from{left_of(child).x + box_width, left_of(child).y}, to = left_of(parent);
  const double middle = (from.x + to.x) / 2;
  const auto pair = [](double x, double y) { return svg::number(x) + "," + svg::number(y); };
  return "<path d=\"M" + pair(from.x, from.y) + " C" + pair(middle, from.y) + " " + pair(middle, to.y) + " " +
         pair(to.x, to.y) + "\" fill=\"none\" stroke=\"" + colour_of(parent) +
         "\" stroke-width=\"2\" stroke-opacity=\"0.55\"/>\n";
}

/// What was found of a file, and its colour.
std::pair<std::string, const char*> badge_of(adapt::digest_state state) {
  switch (state) {
    case adapt::digest_state::right:
      return {"\xE2\x9C\x93 verified", "hsl(140,60%,30%)"};
    case adapt::digest_state::wrong:
      return {"\xE2\x9C\x97 another file", "hsl(0,70%,45%)"};
    case adapt::digest_state::missing_file:
      return {"not here", "#777"};
    case adapt::digest_state::unknown:
      break;
  }
  return {"", "#777"};
}

std::string draw(const lineage_box& box, std::span<const adapt::digest_state> states) {
  const svg::point at = left_of(box);
  const double top = at.y - box_height / 2;
  const adapt::lineage& m = *box.model;
  const std::string paint = colour_of(box);
  std::string out = "<rect" + svg::attribute("x", at.x) + svg::attribute("y", top) +
                    svg::attribute("width", box_width) + svg::attribute("height", box_height) +
                    " rx=\"9\" fill=\"white\" stroke=\"" + paint + "\" stroke-width=\"1.5\"/>\n";
  out += "<rect" + svg::attribute("x", at.x) + svg::attribute("y", top + 10) + " width=\"4\"" +
         svg::attribute("height", box_height - 20) + " fill=\"" + paint + "\"/>\n";
  const double x = at.x + 16;
  out += svg::words({x, top + 22}, shortened(printable(m.name), letters_in_name),
                    "font-size=\"14\" font-weight=\"bold\" fill=\"#111\"");
  std::string role = box.generation == 0 ? std::string() : m.role;
  if (!m.method.empty()) role += (role.empty() ? "" : " \xC2\xB7 ") + std::string("made by ") + m.method;
  if (m.seed != 0) role += ", seed " + std::to_string(m.seed);
  out += svg::words({x, top + 40}, shortened(printable(role), letters_in_line), "fill=\"" + paint + "\"");
  out += svg::words({x, top + 55}, shortened(printable(m.license.empty() ? "licence not known" : m.license), 40),
                    "font-size=\"11\" fill=\"#555\"");
  if (!m.sha256.empty())
    out += svg::words({x, top + 69}, "sha256 " + m.sha256.substr(0, 16) + "\xE2\x80\xA6",
                      "font-size=\"10.5\" font-family=\"Menlo, Consolas, monospace\" fill=\"#777\"");
  if (box.number < states.size()) {
    const auto [text, colour] = badge_of(states[box.number]);
    if (!text.empty())
      out += svg::words(
          {at.x + box_width - 10, top + 69}, text,
          std::string("text-anchor=\"end\" font-size=\"10.5\" font-weight=\"bold\" fill=\"") + colour + "\"");
  }
  return out;
}

}  // namespace

std::string lineage_svg(const adapt::lineage& of, std::span<const adapt::digest_state> states) {
  const lineage_layout layout(of);
  const auto generations = static_cast<double>(layout.generations());
  std::string out = svg::begin(2 * margin + generations * box_width + (generations - 1) * gap_x,
                               heading + 2 * margin + layout.height());
  out += svg::words({margin, 36}, "Where " + printable(of.name) + " comes from",
                    "font-size=\"18\" font-weight=\"bold\" fill=\"#111\"");
  const std::size_t ancestors = layout.boxes().size() - 1;
  out += svg::words({margin, 57},
                    ancestors == 0 ? "nothing is recorded" : "parents on the right of what was made from them",
                    "fill=\"#666\"");
  for (const lineage_box& child : layout.boxes())
    for (const std::size_t parent : child.parents) out += edge(child, layout.boxes()[parent]);
  for (const lineage_box& box : layout.boxes()) out += draw(box, states);
  return out + svg::end;
}

}  // namespace flywheel::cli
