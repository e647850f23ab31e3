// Low-rank adapters (LoRA, DoRA) on a loaded model: kept beside its weights, chosen per sequence, changed between
// tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"

namespace flywheel::inline v0 {

class model;

/// Facts about an adapter.
struct adapter_info {
  std::string name;          ///< general.name, or the file's or folder's.
  float alpha = 0;           ///< As the file says; 0: none.
  std::int64_t rank = 0;     ///< The largest of its tensors.
  std::int64_t weights = 0;  ///< How many of the base's tensors it changes.
  std::size_t bytes = 0;     ///< Held in memory.
};

/// An adapter, ready to run on one model, which it keeps loaded. A cheap handle, copied by value; immutable, thread-safe:
/// any number of sessions and threads may use it at once. docs/adapters.md
///
///     y = base(x) + sum over the adapters in use of  use.scale * (gain * (base(x) - bias) + (alpha / rank) B (A x))
///
/// for every product with an adapted weight; gain is 0 but with DoRA, where it is m / ||W + (alpha / rank) B A||_row -
/// 1 and the second term is multiplied by 1 + gain (Liu et al. 2024). A token's embedding row e gets B A[:, e] in the
/// same way. Scales of adapters that are used together add up, which equals an adapter of their ranks put one after the
/// other.
class FLYWHEEL_API adapter {
 public:
  adapter() noexcept = default;
  /// A GGUF adapter file or a PEFT folder (open_adapter_archive). Nothing of the base is loaded again; DoRA reads the
  /// rows of the base that it scales. Errors: those of open_adapter_archive; invalid_argument (made for another
  /// architecture; a tensor that the base does not have or has in another shape: named with both files); unsupported
  /// (changes that only a merge can make: norms, biases, experts; a base whose products run on a device other than the
  /// CPU), cancelled, out_of_memory.
  [[nodiscard]] static result<adapter> open(const model& base, const std::filesystem::path& path,
                                            const control& control = {});
  [[nodiscard]] static result<adapter> open(const model& base, const io::archive& file, const control& control = {});

  [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }
  [[nodiscard]] const adapter_info& info() const noexcept;

  struct state;
  explicit adapter(std::shared_ptr<const state> s) noexcept : state_(std::move(s)) {}
  [[nodiscard]] const std::shared_ptr<const state>& shared() const noexcept { return state_; }

 private:
  std::shared_ptr<const state> state_;
};

/// An adapter and how much of it.
struct adapter_use {
  flywheel::adapter adapter;
  float scale = 1;  ///< Any finite number; 0 is like not being there.
};

struct adapter_pool_options {
  std::size_t max_bytes = std::size_t{1} << 30;  ///< Of resident adapters; those in use elsewhere count too.
};

/// Many adapters of one model by name, of which those used last are in memory. Thread-safe; a cheap handle.
class FLYWHEEL_API adapter_pool {
 public:
  [[nodiscard]] static result<adapter_pool> create(const model& base, const adapter_pool_options& options = {});
  /// Remembers where an adapter is; reads nothing. Error: invalid_argument (the name is taken or empty).
  [[nodiscard]] result<void> add(std::string name, std::filesystem::path path);
  /// Forgets it; who holds its handle may go on. Error: not_found.
  [[nodiscard]] result<void> remove(std::string_view name);
  /// The resident adapter, or loads it and lets go of those not used for longest until all fit. Threads that want one
  /// that is being loaded wait for it; others do not. Errors: not_found; those of adapter::open; out_of_memory (it
  /// alone exceeds the limit).
  [[nodiscard]] result<adapter> get(std::string_view name, const control& control = {}) const;
  [[nodiscard]] std::size_t size() const noexcept;            ///< Names.
  [[nodiscard]] std::size_t resident() const noexcept;        ///< Adapters in memory.
  [[nodiscard]] std::size_t resident_bytes() const noexcept;  ///< What they take.

 private:
  struct state;
  explicit adapter_pool(std::shared_ptr<state> s) noexcept : state_(std::move(s)) {}
  std::shared_ptr<state> state_;
};

}  // namespace flywheel::inline v0
