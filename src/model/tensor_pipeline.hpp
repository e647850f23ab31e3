// Tensors on their way into a model file: rows are read, decoded and encoded by all workers, a few MiB at a time, while
// one of them writes what was encoded before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flywheel/core/context.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/io/writer.hpp"
#include "src/model/row_reader.hpp"

namespace flywheel::inline v0::detail {

/// Not thread-safe. Functions may throw std::bad_alloc.
class tensor_pipeline {
 public:
  /// Of a tensor that are made at once, but at least one row; as much is on its way into the file.
  static constexpr std::int64_t piece_bytes = std::int64_t{8} << 20;

  /// Rows [n, cols], the first of which is row `first` of the tensor, as they will be stored. Called by several workers
  /// at once.
  using encode_fn =
      function_ref<result<void>(std::span<const float> rows, std::int64_t first, std::span<std::byte> stored)>;

  /// Rows first .. first+count-1 of a tensor, made where they will be stored. Called by several workers at once.
  using make_fn =
      function_ref<result<void>(std::int64_t first, std::int64_t count, unsigned worker, std::span<std::byte> stored)>;

  /// `types` [tensors]: what each tensor of `from` becomes, in that order. A file name that ends with .safetensors gets
  /// that container, with device formats taken apart. `resume_key`: as io::writer::resume has it; none: not resumable.
  /// Errors: io (not enough free space too), those of check_apart and of the writer.
  [[nodiscard]] static result<tensor_pipeline> create(const io::archive& from, const std::filesystem::path& out,
                                                      io::metadata meta, std::span<const dtype> types,
                                                      std::optional<std::string> resume_key, const context& ctx,
                                                      const flywheel::control& control);
  /// Tensors of any origin, in file order, that `copy`, `make` and `put` give; not resumable. The caller has called
  /// check_apart.
  [[nodiscard]] static result<tensor_pipeline> create(std::vector<io::tensor_plan> tensors,
                                                      const std::filesystem::path& out, io::metadata meta,
                                                      const context& ctx, const flywheel::control& control);

  /// Whether an earlier run wrote this tensor.
  [[nodiscard]] bool complete(std::size_t tensor) const noexcept;
  /// The stored bytes as they are: of the archive's own tensor, or of another's.
  [[nodiscard]] result<void> copy(std::size_t tensor) { return copy(tensor, from_, from_.tensors()[tensor]); }
  [[nodiscard]] result<void> copy(std::size_t tensor, const io::archive& from, const io::tensor_info& info);
  /// Errors: those of `encode` (the first row's), unsupported (a stored type without decoder), cancelled, io.
  [[nodiscard]] result<void> encode(std::size_t tensor, encode_fn encode);
  /// The same for rows from anywhere, at most `per_chunk` in a call; about 8 MiB at once, at `row_cost` bytes per row.
  [[nodiscard]] result<void> make(std::size_t tensor, std::int64_t per_chunk, std::size_t row_cost, make_fn make);
  /// Bytes that were made elsewhere.
  [[nodiscard]] result<void> put(std::size_t tensor, std::vector<std::byte> bytes);
  /// A tensor that is complete already: only counted.
  void pass(std::size_t tensor) noexcept;
  /// What is written so far as a file of its own (io::writer::partial).
  [[nodiscard]] result<std::filesystem::path> partial();
  /// As io::writer::amend has it.
  [[nodiscard]] result<void> amend(std::span<const std::pair<std::string, std::string>> texts);
  [[nodiscard]] result<void> finish();
  /// Nothing is kept for a later run.
  void abandon() noexcept { writer_->abandon(); }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return done_; }  ///< Of tensors, so far.

 private:
  struct piece {
    std::size_t tensor = 0;
    std::vector<std::byte> bytes;
    bool last = false;  ///< Of its tensor.
  };
  tensor_pipeline() = default;
  static result<tensor_pipeline> begin(std::vector<io::tensor_plan> tensors, const std::filesystem::path& out,
                                       io::metadata meta, std::optional<std::string> resume_key, const context& ctx,
                                       const flywheel::control& control);
  /// Fills the next piece in parallel while the one before is written. `make` is called for chunks 0 .. chunks-1.
  result<void> step(piece next, std::size_t chunks,
                    function_ref<result<void>(std::size_t chunk, piece& next, unsigned worker)> make);
  result<void> write_pending();

  io::archive from_;  ///< Empty without one.
  std::filesystem::path out_;
  std::vector<io::tensor_plan> tensors_;
  std::vector<std::size_t> first_plan_;  ///< Of each tensor: its place in the writer's plan.
  std::optional<io::writer> writer_;
  std::optional<piece> pending_;
  std::size_t selected_ = static_cast<std::size_t>(-1);  ///< The tensor that the writer is at.
  std::vector<std::byte> spare_;                         ///< A buffer to use again.
  std::vector<std::byte> codes_, scales_;
  std::vector<row_reader::scratch> scratch_;  ///< [workers]
  context ctx_;
  flywheel::control control_;
  std::uint64_t done_ = 0, total_ = 0;
  bool safetensors_ = false, resumable_ = false;
};

/// Error: invalid_argument, when `out`, or a file beside it that a `resumable` writer uses, is one of the files that
/// `from` reads, or belongs to its folder.
[[nodiscard]] result<void> check_apart(const io::archive& from, const std::filesystem::path& out, bool resumable);

/// An encoder for whole rows of `cols` by the format's plain rounding.
[[nodiscard]] result<void> encode_plainly(dtype type, std::int64_t cols, std::span<const float> rows,
                                          std::span<std::byte> stored) noexcept;

}  // namespace flywheel::inline v0::detail
