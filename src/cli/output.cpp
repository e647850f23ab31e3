#include "cli/output.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <system_error>

#include "cli/terminal.hpp"

namespace flywheel::cli {

void fail(errc code, std::string where, std::string message) {
  throw bad_result(error{code, std::move(message), std::move(where)});
}

namespace {

/// What the system said in errno. EINTR is Ctrl-C: no other signal has a handler.
[[noreturn]] void fail_io(std::string where, std::string_view doing, std::string_view advice = {}) {
  const int why = errno;
  fail(why == EINTR    ? errc::cancelled
       : why == ENOENT ? errc::not_found
                       : errc::io,
       std::move(where), std::string(doing) + ": " + std::strerror(why) + std::string(advice));
}

/// Calls each(bytes, codepoint) for every character; codepoint -1 for a byte that is not UTF-8.
template <class F>
void for_each_character(std::string_view text, F&& each) {
  while (!text.empty()) {
    utf8proc_int32_t point = -1;
    const auto size = static_cast<utf8proc_ssize_t>(std::min<std::size_t>(text.size(), 4));
    const auto used = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), size, &point);
    const std::size_t length = used > 0 ? static_cast<std::size_t>(used) : 1;
    each(text.substr(0, length), used > 0 ? point : -1);
    text.remove_prefix(length);
  }
}

std::string made_printable(std::string_view text, bool keep_lines) {
  std::string out;
  out.reserve(text.size());
  for_each_character(text, [&](std::string_view bytes, utf8proc_int32_t point) {
    if (point < 0) {
      out += "\xEF\xBF\xBD";  // U+FFFD
    } else if (point == '\n' || point == '\t') {
      if (keep_lines)
        out += bytes;
      else
        out += point == '\n' ? "\\n" : "\\t";
    } else if (point == '\r') {
      out += "\\r";
    } else if (point < 0x20 || (point >= 0x7F && point < 0xA0)) {
      const char* digits = "0123456789abcdef";
      out += "\\x";
      out += digits[point >> 4];
      out += digits[point & 15];
    } else if ((point >= 0x202A && point <= 0x202E) || (point >= 0x2066 && point <= 0x2069)) {
      out += "\xEF\xBF\xBD";  // direction overrides would reorder what follows them on the screen
    } else {
      out += bytes;
    }
  });
  return out;
}

}  // namespace

std::string printable(std::string_view text) { return made_printable(text, false); }
std::string printable_lines(std::string_view text) { return made_printable(text, true); }

std::size_t display_width(std::string_view text) {
  std::size_t width = 0;
  for_each_character(text, [&](std::string_view, utf8proc_int32_t point) {
    width += point < 0 ? 1 : static_cast<std::size_t>(std::max(0, utf8proc_charwidth(point)));
  });
  return width;
}

std::string shortened(std::string_view text, std::size_t columns) {
  if (display_width(text) <= columns) return std::string(text);
  if (columns == 0) return {};
  std::string out;
  std::size_t width = 0;
  bool full = false;
  for_each_character(text, [&](std::string_view bytes, utf8proc_int32_t point) {
    width += point < 0 ? 1 : static_cast<std::size_t>(std::max(0, utf8proc_charwidth(point)));
    full = full || width > columns - 1;
    if (!full) out += bytes;
  });
  return out + "\xE2\x80\xA6";  // …
}

std::string decimal(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string grouped(std::int64_t value) {
  std::string text = std::to_string(value);
  const std::size_t first = value < 0 ? 1 : 0;
  for (std::size_t i = text.size(); i > first + 3; i -= 3) text.insert(i - 3, ",");
  return text;
}

std::string human_bytes(std::uint64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(units)) value /= 1024, ++unit;
  return decimal(value, unit == 0 ? 0 : value < 100 ? 1 : 0) + " " + units[unit];
}

std::string human_seconds(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  char text[64];
  if (whole < 3600)
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(whole / 60), static_cast<int>(whole % 60));
  else
    std::snprintf(text, sizeof text, "%lld:%02d:%02d", static_cast<long long>(whole / 3600),
                  static_cast<int>(whole / 60 % 60), static_cast<int>(whole % 60));
  return text;
}

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

std::string bold(std::string_view text) {
  return takes_colour(stdout) ? "\x1b[1m" + std::string(text) + "\x1b[0m" : std::string(text);
}

std::string red(std::string_view text) {
  return takes_colour(stdout) ? "\x1b[31m" + std::string(text) + "\x1b[0m" : std::string(text);
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail_io("stdout", "cannot write");
}

void print_line(std::string_view text) {
  print(text);
  print("\n");
}

void finish_stdout() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) fail_io("stdout", "cannot write");
}

void table::row(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  for (std::string& cell : cells) cell = printable(cell);
  rows_.push_back(std::move(cells));
}

std::string table::text(std::size_t indent) const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::size_t width = display_width(columns_[c].title);
    for (const auto& row : rows_) width = std::max(width, display_width(row[c]));
    widths.push_back(width);
  }
  std::string out;
  const auto line = [&](const auto& cell_of) {
    std::string text(indent, ' ');
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const std::string& cell = cell_of(c);
      const std::string padding(widths[c] - display_width(cell), ' ');
      if (c > 0) text += "  ";
      text += columns_[c].side == align::right ? padding + cell : cell + padding;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line([&](std::size_t c) -> const std::string& { return columns_[c].title; });
  for (const auto& row : rows_) line([&](std::size_t c) -> const std::string& { return row[c]; });
  return out;
}

output_file::output_file(std::filesystem::path path, std::string option)
    : path_(std::move(path)), option_(std::move(option)) {
  if (path_ == "-") throw usage_error(option_, "must be a file, not -: stdout is for what describes it");
  std::error_code ignored;
  const auto status = std::filesystem::status(path_, ignored);
  if (std::filesystem::is_directory(status)) {
    errno = EISDIR;
    refuse("cannot write");
  }
  // Renaming over a device, or over a name of the system such as /dev/stdout (which may lead to a plain file), would
  // destroy it.
  const std::string name = std::filesystem::absolute(path_, ignored).lexically_normal().generic_string();
  const bool system_name = name.starts_with("/dev/") || name.starts_with("/proc/");
  if (system_name || (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))) {
    file_ = std::fopen(path_.string().c_str(), "wb");
    if (file_ == nullptr) refuse("cannot write");
    return;
  }
  // A link stays: the file it leads to is replaced.
  if (auto target = std::filesystem::canonical(path_, ignored); !ignored) path_ = std::move(target);
  for (int attempt = 0; attempt < 100 && file_ == nullptr; ++attempt) {
    temporary_ = path_;
    temporary_ += ".tmp" + std::to_string(attempt);
    file_ = std::fopen(temporary_.string().c_str(), "wbx");
    if (file_ == nullptr && errno != EEXIST) break;
  }
  if (file_ == nullptr) {
    temporary_.clear();
    refuse("cannot create the file");
  }
}

output_file::~output_file() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove(temporary_, ignored);
}

void output_file::refuse(std::string_view doing) { fail_io(path_.string(), doing, "; choose another " + option_); }

void output_file::write(std::span<const std::byte> bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) refuse("cannot write");
}

void output_file::write(std::span<const float> values) {
  if constexpr (std::endian::native == std::endian::little) {
    write(std::as_bytes(values));
  } else {
    for (const float value : values) {
      const auto bits = std::bit_cast<std::uint32_t>(value);
      const std::byte bytes[] = {std::byte(bits & 255), std::byte(bits >> 8 & 255), std::byte(bits >> 16 & 255),
                                 std::byte(bits >> 24)};
      write(std::span<const std::byte>(bytes));
    }
  }
}

void output_file::finish() {
  const bool written = std::fflush(file_) == 0;
  const int why = errno;
  if (std::fclose(std::exchange(file_, nullptr)) != 0 || !written) {
    std::error_code ignored;
    if (!temporary_.empty()) std::filesystem::remove(temporary_, ignored);
    errno = written ? errno : why;
    refuse("cannot write");
  }
  if (temporary_.empty()) return;
  std::error_code failed;
  std::filesystem::rename(temporary_, path_, failed);
  if (failed) {
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
    fail(errc::io, path_.string(), "cannot rename the finished file to this name: " + failed.message());
  }
}

void refuse_overwrite(const std::filesystem::path& out, const std::string& option,
                      const std::vector<std::string>& inputs) {
  std::error_code ignored;
  if (!std::filesystem::exists(out, ignored)) return;
  const std::filesystem::path folder = out.has_parent_path() ? out.parent_path() : ".";
  for (const std::string& input : inputs)
    if (std::filesystem::equivalent(out, input, ignored) || std::filesystem::equivalent(folder, input, ignored))
      throw usage_error(option,
                        "'" + out.string() + "' would be written over what is read (" + input + "); give another name");
}

// What text::tokenizer::encode takes; a device such as /dev/zero never ends.
constexpr std::size_t largest_text = std::size_t{512} << 20;

std::string read_file(const std::filesystem::path& path) {
  const bool standard = path == "-";
  const std::string where = standard ? "stdin" : path.string();
  std::error_code ignored;
  if (!standard && std::filesystem::is_directory(path, ignored)) fail(errc::io, where, "is a folder; name a file");
  std::FILE* file = standard ? stdin : std::fopen(path.string().c_str(), "rb");
  if (file == nullptr) fail_io(where, "cannot open");
  std::string text;
  std::vector<char> piece(1 << 16);
  const interruptible_reading reading;
  std::size_t got = 0;
  while (text.size() <= largest_text && (got = std::fread(piece.data(), 1, piece.size(), file)) > 0)
    text.append(piece.data(), got);
  const bool broken = std::ferror(file) != 0;
  const int why = errno;
  if (!standard) std::fclose(file);
  errno = why;
  if (broken) fail_io(where, "cannot read");
  if (text.size() > largest_text)
    fail(errc::invalid_argument, where, "is larger than " + human_bytes(largest_text) + "; cut it into pieces");
  return text;
}

std::string decode_base64(std::string_view text, const std::string& where) {
  const std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  std::uint32_t bits = 0;
  int count = 0;
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  for (const char c : text) {
    const std::size_t digit = alphabet.find(c);
    if (digit == std::string_view::npos) fail(errc::malformed, where, "is not base64");
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 255);
    }
  }
  return out;
}

}  // namespace flywheel::cli
