// SentencePiece merges by the score of what comes out; other descriptions of the same vocabulary list the merges in
// order.
#pragma once

#include <span>
#include <string>

namespace flywheel::inline v0::text {

/// Sets the score of every token that a merge ("left right") makes to minus the place of its first one, and of the
/// others to 0. `tokens` and `scores` have the same size; merges of unknown tokens are passed over.
void score_by_merges(std::span<const std::string> merges, std::span<const std::string> tokens, std::span<float> scores);

}  // namespace flywheel::inline v0::text
