#include "trie.hpp"

#include <algorithm>

namespace flywheel::inline v0::text {

trie::trie(std::vector<std::pair<std::string_view, token_id>> entries) {
  std::erase_if(entries, [](const auto& e) { return e.first.empty() || e.first.size() > max_length; });
  if (entries.empty()) return;
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });

  // Breadth first, so that the children of a node are appended together. A pending node is the range of entries that
  // share its path; `depth` is the length of that path.
  struct pending {
    std::size_t begin, end, depth;
  };
  std::vector<pending> queue{{0, entries.size(), 0}};
  nodes_.emplace_back();
  labels_.push_back(0);
  for (std::size_t at = 0; at < queue.size(); ++at) {
    auto [begin, end, depth] = queue[at];
    if (entries[begin].first.size() == depth) {
      nodes_[at].id = entries[begin].second;
      while (begin < end && entries[begin].first.size() == depth) ++begin;
    }
    nodes_[at].first = static_cast<std::uint32_t>(nodes_.size());
    while (begin < end) {
      const char label = entries[begin].first[depth];
      std::size_t stop = begin + 1;
      while (stop < end && entries[stop].first[depth] == label) ++stop;
      queue.push_back({begin, stop, depth + 1});
      nodes_.emplace_back();
      labels_.push_back(static_cast<unsigned char>(label));
      ++nodes_[at].count;
      begin = stop;
    }
  }
  for (std::uint32_t child = nodes_[0].first; child < nodes_[0].first + nodes_[0].count; ++child)
    root_[labels_[child]] = child;
}

}  // namespace flywheel::inline v0::text
