// What the command writes: text that is safe to show, numbers, tables, JSON, and files that appear when complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "flywheel/core/result.hpp"

namespace flywheel::cli {

using json = nlohmann::ordered_json;

/// The command line is wrong in a way that its declaration cannot tell: exit code 2.
struct usage_error : std::runtime_error {
  usage_error(std::string where_, const std::string& message) : std::runtime_error(message), where(std::move(where_)) {}
  std::string where;
};

/// Throws a failure of the command: exit code 1.
[[noreturn]] void fail(errc code, std::string where, std::string message);

/// `text` on one line with nothing in it that moves a terminal: control characters are escaped, invalid UTF-8 becomes
/// U+FFFD.
[[nodiscard]] std::string printable(std::string_view text);
/// The same, but line feeds and tabs stay: generated text on a terminal.
[[nodiscard]] std::string printable_lines(std::string_view text);
/// Columns that `text` (valid UTF-8) takes on a terminal.
[[nodiscard]] std::size_t display_width(std::string_view text);
/// At most `columns` wide, with "…" where something was cut.
[[nodiscard]] std::string shortened(std::string_view text, std::size_t columns);

[[nodiscard]] std::string decimal(double value, int digits);  ///< 3.14
[[nodiscard]] std::string grouped(std::int64_t value);        ///< 1,234,567
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);   ///< 10.1 MiB
[[nodiscard]] std::string human_seconds(double seconds);      ///< 1:05

/// One line of JSON; invalid UTF-8 becomes U+FFFD.
[[nodiscard]] std::string dump(const json& value);

/// `text` in bold or red when stdout takes colours, else as it is.
[[nodiscard]] std::string bold(std::string_view text);
[[nodiscard]] std::string red(std::string_view text);

/// Writes to stdout; throws when that fails.
void print(std::string_view text);
void print_line(std::string_view text);
/// Flushes stdout; throws when something could not be written.
void finish_stdout();

/// Columns padded to the widest cell.
class table {
 public:
  enum class align : std::uint8_t { left, right };
  struct column {
    std::string title;
    align side = align::left;
  };
  explicit table(std::initializer_list<column> columns) : columns_(columns) {}
  /// Cells beyond the columns are dropped, missing ones are empty. Cells are made printable.
  void row(std::vector<std::string> cells);
  [[nodiscard]] bool empty() const noexcept { return rows_.empty(); }
  /// The whole table, each line indented by `indent` and ended by a line feed.
  [[nodiscard]] std::string text(std::size_t indent = 0) const;

 private:
  std::vector<column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// A file that appears under its name when finish() is called; until then it is a temporary one beside it, which
/// disappears on failure. A target that is not a regular file (a pipe, a device) is written directly.
class output_file {
 public:
  /// `option`: what named it, for messages.
  explicit output_file(std::filesystem::path path, std::string option = "--out");
  ~output_file();
  output_file(const output_file&) = delete;
  output_file& operator=(const output_file&) = delete;

  void write(std::span<const std::byte> bytes);
  /// Little-endian.
  void write(std::span<const float> values);
  void finish();

 private:
  [[noreturn]] void refuse(std::string_view doing);
  std::filesystem::path path_;
  std::string option_;
  std::filesystem::path temporary_;  ///< Empty: written directly.
  std::FILE* file_ = nullptr;
};

/// Throws usage_error naming `option` when `out` is one of the files that the command reads, or lies in one of the
/// folders as a file that is there.
void refuse_overwrite(const std::filesystem::path& out, const std::string& option,
                      const std::vector<std::string>& inputs);

/// All bytes of a file, or of stdin for "-", 512 MiB at most. Throws.
[[nodiscard]] std::string read_file(const std::filesystem::path& path);
/// Throws a failure naming `where` for characters outside the alphabet.
[[nodiscard]] std::string decode_base64(std::string_view text, const std::string& where);

}  // namespace flywheel::cli
