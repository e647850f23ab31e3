// An adapter in memory while it is made.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "flywheel/adapt/adapters.hpp"
#include "flywheel/core/dtype.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0::adapt {

class adapter_builder {
 public:
  adapter_builder(const io::archive& base, std::string name, dtype type);

  /// The change L R of a tensor of the base: L [rows, rank], R [matrices, rank, cols]. `name`: the tensor's, or
  /// output.weight for a tied head.
  [[nodiscard]] result<void> add(const std::string& name, const shape& dims, bool embedding, std::int64_t rank,
                                 std::span<const float> left, std::span<const float> right);
  void report(std::string name, std::int64_t rank, double squares, double error_squares);
  /// What is reported and added, as an adapter with factors of 1.
  [[nodiscard]] result<extracted_adapter> finish();

 private:
  [[nodiscard]] result<void> put(std::string name, const shape& dims, std::span<const float> values);
  io::archive_content content_;
  dtype type_;
  extracted_adapter made_;
  std::int64_t rank_ = 0;  ///< Of all tensors; -1: they differ.
  double squares_ = 0, error_squares_ = 0;
};

/// A seed for one tensor.
[[nodiscard]] std::uint64_t seed_of(std::uint64_t seed, std::string_view name) noexcept;

}  // namespace flywheel::inline v0::adapt
