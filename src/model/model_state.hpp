// What a model handle points to. Immutable after opening.
#pragma once

#include <cstddef>
#include <memory>

#include "flywheel/model/model.hpp"
#include "src/model/engine.hpp"
#include "src/model/session_sizes.hpp"

namespace flywheel::inline v0 {

struct model::state {
  flywheel::context ctx;
  io::archive file;  ///< Its metadata; its mapped rows belong to the weights.
  model_info info;
  text::tokenizer tokenizer;
  std::unique_ptr<const detail::engine> engine;
  std::size_t weight_bytes = 0;
};

namespace detail {
/// Errors from inside a file say which file.
[[nodiscard]] error in_file(error e, const io::archive& file);
}  // namespace detail

}  // namespace flywheel::inline v0
