// An archive whose tensors are scaled and rotated as they are read. Of a tensor whose rows are rotated, the matrix that
// was read last stays in memory until it is released.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "src/quant/hadamard.hpp"

namespace flywheel::inline v0::quant {

using shared_rotation = std::shared_ptr<const hadamard_rotation>;

/// What happens to a tensor, in this order. A vector is one row. Groups of the rotation's size are rotated each by
/// itself: all columns, or rows first .. first + count - 1 of every matrix.
struct tensor_edit {
  bool ones = false;           ///< Nothing but ones comes of it.
  std::vector<float> columns;  ///< Factors [columns]; empty: none.
  std::vector<float> rows;     ///< Factors [rows of a matrix]; empty: none.
  shared_rotation column_rotation;
  shared_rotation row_rotation;
  std::int64_t first_row = 0, row_count = 0;

  /// `factors` at first .. of `into`, which is resized to `size` ones if it is empty.
  static void multiply(std::vector<float>& into, std::int64_t size, std::int64_t first,
                       const std::vector<float>& factors);
};

struct edited_content {
  std::map<std::string, tensor_edit, std::less<>> edits;  ///< By tensor.
  /// New tensors that are another one's edited copy: name -> source.
  std::map<std::string, std::pair<std::string, tensor_edit>, std::less<>> copies;
  std::string mark;  ///< A key of the metadata that becomes true; none when empty.
};

/// Edited tensors are f32. Errors: not_found (no such tensor), unsupported (a type without decoder).
[[nodiscard]] result<io::archive> edit_archive(const io::archive& base, edited_content content);

/// While a tensor is read: at its end, what reading keeps (a matrix whose rows were rotated, pages of a file) goes.
class tensor_reading {
 public:
  /// Both outlive it.
  tensor_reading(const io::archive& from, const io::tensor_info& tensor) noexcept : from_(from), tensor_(tensor) {}
  ~tensor_reading() { from_.release(tensor_); }
  tensor_reading(const tensor_reading&) = delete;
  tensor_reading& operator=(const tensor_reading&) = delete;

 private:
  const io::archive& from_;
  const io::tensor_info& tensor_;
};

/// A whole tensor as f32 [elements]; released afterwards.
[[nodiscard]] result<std::vector<float>> read_floats(const io::archive& from, const io::tensor_info& tensor);
/// Error: not_found.
[[nodiscard]] result<const io::tensor_info*> find_tensor(const io::archive& from, std::string_view name);

}  // namespace flywheel::inline v0::quant
