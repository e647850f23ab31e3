// A search over merges, as a drawing.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace flywheel::cli {

/// What is drawn. Figures: larger is better; NaN: none.
struct evolve_drawing {
  std::string title, subtitle;
  std::string figure;                             ///< What figures are: "share of the best parent's gain kept".
  std::size_t population = 0;                     ///< Candidates of a generation.
  std::vector<double> values;                     ///< [candidates] The objective.
  std::vector<std::string> texts;                 ///< Names of what is searched on, and
  std::vector<std::vector<double>> text_figures;  ///< [candidates][texts] their figures.
  double start = 0;                               ///< The objective of the recipe as it was given.
  struct row {
    std::string name;
    std::vector<double> figures;  ///< [tests]
    bool parent = false;
  };
  std::string final_note;          ///< Which texts the final figures are of.
  std::vector<std::string> tests;  ///< Names of the texts of the final figures.
  std::vector<row> rows;           ///< Parents, then the recipe as it was given, then the best.
};

/// An SVG drawing: the search by evaluation above, final figures below. At least one candidate, one text, one row.
[[nodiscard]] std::string evolve_svg(const evolve_drawing& of);

}  // namespace flywheel::cli
