#include "flywheel/core/dtype.hpp"

namespace flywheel::inline v0 {

namespace {

// std::tolower depends on the host's locale.
constexpr char lower(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

constexpr bool same_letters(std::string_view a, std::string_view b) noexcept {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (lower(a[i]) != lower(b[i])) return false;
  return true;
}

}  // namespace

const dtype_info* find_dtype(std::string_view name) noexcept {
  for (const dtype_info& row : dtype_table)
    if (same_letters(row.name, name)) return &row;
  return nullptr;
}

}  // namespace flywheel::inline v0
