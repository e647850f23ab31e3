// The numbers of a recipe that a search changes.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "flywheel/adapt/evolve.hpp"
#include "flywheel/adapt/merge_models.hpp"

namespace flywheel::inline v0::adapt {

/// Which numbers of a recipe are searched for, between which bounds, and the recipe with others in their place.
class recipe_numbers {
 public:
  /// `plan`: the recipe's own. Errors: invalid_argument (a parameter that no method has; bounds; nothing to search).
  [[nodiscard]] static result<recipe_numbers> find(const recipe& what, const merge_plan& plan,
                                                   const evolve_options& options);
  [[nodiscard]] const std::vector<double>& start() const noexcept { return start_; }
  [[nodiscard]] const std::vector<double>& lower() const noexcept { return lower_; }
  [[nodiscard]] const std::vector<double>& upper() const noexcept { return upper_; }
  /// The recipe with these numbers [start().size()].
  [[nodiscard]] recipe with(std::span<const double> numbers) const;

 private:
  /// Tensors with the same numbers.
  struct part {
    std::size_t slice = 0;
    std::vector<std::string> filters;  ///< By which a recipe names them; the last part of a slice has none.
  };
  /// The numbers of one parameter of one slice, and one source if it is per model: one for each part of the slice.
  struct row {
    std::size_t slice = 0, source = 0;
    std::string name;
    bool per_model = false;
    std::size_t first_part = 0, parts = 0, first = 0;  ///< `first`: of start_.
  };

  explicit recipe_numbers(const recipe& what) : what_(what) {}
  void cut(std::int64_t layers, const evolve_options& options);
  [[nodiscard]] std::size_t part_of(const std::string& tensor) const;
  result<void> add_slice(std::size_t slice, const merge_plan& plan, std::span<const evolved_parameter> wanted);
  result<void> bound(row& of, const evolved_parameter& wanted, double least, double most);
  [[nodiscard]] const merge::method* method_of(std::size_t slice) const;

  recipe what_;
  std::vector<part> parts_;               ///< Those of a slice together, in the order in which filters are looked at.
  std::vector<std::int64_t> last_layer_;  ///< [slices] One behind, in the result.
  std::vector<row> rows_;
  std::vector<double> start_, lower_, upper_;
};

}  // namespace flywheel::inline v0::adapt
