#include "merge_scores.hpp"

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <unordered_map>

namespace flywheel::inline v0::text {

void score_by_merges(std::span<const std::string> merges, std::span<const std::string> tokens,
                     std::span<float> scores) {
  std::unordered_map<std::string_view, std::size_t> ids;
  ids.reserve(tokens.size());
  for (std::size_t id = 0; id < tokens.size(); ++id) ids.emplace(tokens[id], id);
  std::fill(scores.begin(), scores.end(), 0.0F);
  std::string joined;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::size_t space = merges[rank].find(' ', 1);  // a part may begin with a space, not end with one
    if (space == std::string::npos) continue;
    joined.assign(merges[rank], 0, space).append(merges[rank], space + 1);
    if (const auto found = ids.find(joined); found != ids.end() && scores[found->second] == 0)
      scores[found->second] = -static_cast<float>(rank + 1);
  }
}

}  // namespace flywheel::inline v0::text
