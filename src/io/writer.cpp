#include "flywheel/io/writer.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string_view>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/core/checksum.hpp"
#include "src/io/gguf.hpp"
#include "src/io/output_file.hpp"
#include "src/io/reading.hpp"
#include "src/io/writing.hpp"

namespace flywheel::inline v0::io {

namespace {

struct close_stream {
  void operator()(std::FILE* f) const noexcept { std::fclose(f); }
};
using stream = std::unique_ptr<std::FILE, close_stream>;

std::string hexadecimal(std::uint64_t v) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(v));
  return text;
}

/// Lines of a file that end with a line feed: a process may have died within the last one.
std::vector<std::string> whole_lines(const std::filesystem::path& path) {
  std::vector<std::string> lines;
  std::ifstream in(path, std::ios::binary);
  for (std::string line; std::getline(in, line) && !in.eof();) lines.push_back(std::move(line));
  return lines;
}

}  // namespace

struct writer::state {
  detail::output_file out;
  detail::layout layout;
  std::vector<std::string> names;
  std::vector<std::uint64_t> offsets;  ///< Of each tensor in the file.
  std::uint64_t end = 0;               ///< Bytes of the whole file.
  std::vector<bool> done;
  std::size_t current = 0;    ///< The tensor being written; names.size() when all are complete.
  std::uint64_t written = 0;  ///< Bytes of it.
  bool finished = false;
  // Of a resumable writer.
  stream journal;
  flywheel::detail::checksum sum;  ///< Of the current tensor.

  state(detail::output_file&& file, detail::layout&& plan, std::vector<std::string>&& tensors)
      : out(std::move(file)), layout(std::move(plan)), names(std::move(tensors)), done(names.size()) {
    end = out.position();
    for (const std::uint64_t bytes : layout.bytes) {
      offsets.push_back(end);
      end = detail::align_up(end + bytes, layout.alignment);
    }
  }

  /// Pads and steps over tensors that are complete (those without bytes too).
  result<void> advance() {
    static constexpr std::byte zeros[64] = {};
    while (current < names.size() && (done[current] || written == layout.bytes[current])) {
      if (!done[current]) {
        for (std::uint64_t padding = detail::align_up(out.position(), layout.alignment) - out.position();
             padding > 0;) {
          const std::uint64_t n = std::min<std::uint64_t>(padding, sizeof zeros);
          FLYWHEEL_CHECK(out.write(std::span(zeros).first(static_cast<std::size_t>(n))));
          padding -= n;
        }
        FLYWHEEL_CHECK(note());
      }
      ++current;
      start();
    }
    if (current < names.size() && written == 0 && out.position() != offsets[current])
      FLYWHEEL_CHECK(out.seek(offsets[current]));
    return {};
  }
  void start() {
    written = 0;
    sum = {};
  }
  /// The current tensor is complete.
  result<void> note() {
    done[current] = true;
    if (!journal) return {};
    FLYWHEEL_CHECK(out.seek(out.position()));  // the data first, as far as a process that dies is concerned
    return line(std::to_string(current) + " " + hexadecimal(sum.value()));
  }
  result<void> line(const std::string& text) {
    const std::string whole = text + "\n";
    if (std::fwrite(whole.data(), 1, whole.size(), journal.get()) != whole.size() || std::fflush(journal.get()) != 0)
      return error{errc::io, "cannot write: " + std::generic_category().message(errno), out.journal().string()};
    return {};
  }
  /// Finds out what an earlier run with this key completed, and opens the journal.
  result<void> go_on(std::string_view key) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(offsets.empty() ? end : offsets[0]));
    FLYWHEEL_CHECK(out.read(0, bytes));
    sum.add(bytes);
    const std::string first =
        std::string(detail::journal_mark) + " " + hexadecimal(sum.value()) + " " + std::string(key);
    const std::vector<std::string> lines = whole_lines(out.journal());
    if (!lines.empty() && lines[0] == first)
      for (std::size_t i = 1; i < lines.size(); ++i) {
        char* rest = nullptr;
        const unsigned long long tensor = std::strtoull(lines[i].c_str(), &rest, 10);
        if (tensor >= names.size() || *rest != ' ') continue;
        FLYWHEEL_TRY(const std::string found, checksum_of(static_cast<std::size_t>(tensor)));
        if (found == rest + 1) done[static_cast<std::size_t>(tensor)] = true;
      }
    std::string anew = first + "\n";
    for (std::size_t i = 0; i < names.size(); ++i)
      if (done[i]) {
        FLYWHEEL_TRY(const std::string found, checksum_of(i));
        anew += std::to_string(i) + " " + found + "\n";
      }
    // Replaced at once: a process that dies here leaves the old one.
    FLYWHEEL_TRY(detail::output_file replaced, detail::output_file::create(out.journal()));
    FLYWHEEL_CHECK(replaced.write(std::as_bytes(std::span(anew))));
    FLYWHEEL_CHECK(replaced.commit());
    journal.reset(std::fopen(out.journal().string().c_str(), "ab"));
    if (!journal)
      return error{errc::io, "cannot open it: " + std::generic_category().message(errno), out.journal().string()};
    start();
    FLYWHEEL_CHECK(out.resize(end));  // a file of the right size can be opened and read while it is being written
    out.keep();
    return {};
  }
  /// Of what the file holds where the tensor belongs; empty when it is not there.
  result<std::string> checksum_of(std::size_t tensor) {
    flywheel::detail::checksum found;
    std::vector<std::byte> piece;
    for (std::uint64_t at = 0; at < layout.bytes[tensor]; at += piece.size()) {
      piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(1U << 20, layout.bytes[tensor] - at)));
      FLYWHEEL_TRY(const bool there, out.read(offsets[tensor] + at, piece));
      if (!there) return std::string();
      found.add(piece);
    }
    return hexadecimal(found.value());
  }
  [[nodiscard]] error refuse(std::string message) const {
    return {errc::invalid_argument, std::move(message),
            current < names.size() ? out.where() + ": tensor " + detail::in_quotes(names[current]) : out.where()};
  }
};

writer::writer(std::unique_ptr<state> s) noexcept : state_(std::move(s)) {}
writer::writer(writer&&) noexcept = default;
writer& writer::operator=(writer&&) noexcept = default;
writer::~writer() = default;

result<writer> writer::create(const std::filesystem::path& path, io::container kind, const metadata& meta,
                              std::span<const tensor_plan> tensors) {
  return begin(path, kind, meta, tensors, nullptr);
}

result<writer> writer::resume(const std::filesystem::path& path, io::container kind, const metadata& meta,
                              std::span<const tensor_plan> tensors, std::string_view key) {
  return begin(path, kind, meta, tensors, &key);
}

result<writer> writer::begin(const std::filesystem::path& path, io::container kind, const metadata& meta,
                             std::span<const tensor_plan> tensors, const std::string_view* key) {
  return flywheel::detail::guarded([&]() -> result<writer> {
    const std::string where = path.string();
    std::unordered_set<std::string_view> names;
    names.reserve(tensors.size());
    std::vector<std::string> kept;
    kept.reserve(tensors.size());
    if (tensors.size() > detail::max_tensors)
      return error{errc::unsupported, "more than " + std::to_string(detail::max_tensors) + " tensors", where};
    for (const tensor_plan& tensor : tensors) {
      const auto refuse = [&](std::string message) {
        return error{errc::invalid_argument, std::move(message), where + ": tensor " + detail::in_quotes(tensor.name)};
      };
      if (tensor.name.empty()) return refuse("the name is empty");
      if (tensor.name.size() > detail::max_name_bytes) return refuse("the name is too long");
      if (!detail::valid_utf8(tensor.name)) return refuse("the name is not valid UTF-8");
      if (!names.insert(tensor.name).second) return refuse("there are two tensors with this name");
      kept.push_back(tensor.name);
    }
    FLYWHEEL_TRY(detail::output_file out,
                 key != nullptr ? detail::output_file::resume(path) : detail::output_file::create(path));
    FLYWHEEL_TRY(detail::layout layout, kind == container::gguf ? detail::write_gguf_header(out, meta, tensors)
                                                                : detail::write_safetensors_header(out, meta, tensors));
    auto s = std::make_unique<state>(std::move(out), std::move(layout), std::move(kept));
    if (key != nullptr) FLYWHEEL_CHECK(s->go_on(*key));
    FLYWHEEL_CHECK(s->advance());
    return writer(std::move(s));
  });
}

result<void> writer::write(std::span<const std::byte> bytes) {
  return flywheel::detail::guarded([&]() -> result<void> {
    if (!state_ || state_->finished) return error{errc::invalid_argument, "the writer has finished", {}};
    state& s = *state_;
    if (bytes.empty()) return {};
    if (s.current == s.names.size()) return s.refuse("all tensors are complete already");
    const std::uint64_t missing = s.layout.bytes[s.current] - s.written;
    if (bytes.size() > missing)
      return s.refuse("a piece of " + std::to_string(bytes.size()) + " bytes is more than the " +
                      std::to_string(missing) + " that the tensor lacks");
    FLYWHEEL_CHECK(s.out.write(bytes));
    if (s.journal) s.sum.add(bytes);
    s.written += bytes.size();
    return s.advance();
  });
}

bool writer::complete(std::size_t tensor) const noexcept {
  return state_ && tensor < state_->done.size() && state_->done[tensor];
}

result<void> writer::select(std::size_t tensor) {
  return flywheel::detail::guarded([&]() -> result<void> {
    if (!state_ || state_->finished || !state_->journal || tensor >= state_->names.size())
      return error{errc::invalid_argument, "this tensor cannot be selected", {}};
    state& s = *state_;
    s.current = tensor;
    s.done[tensor] = false;
    s.start();
    return s.advance();
  });
}

result<std::filesystem::path> writer::partial() {
  return flywheel::detail::guarded([&]() -> result<std::filesystem::path> {
    if (!state_ || state_->finished || !state_->journal)
      return error{errc::invalid_argument, "this writer has no partial file", {}};
    FLYWHEEL_CHECK(state_->out.seek(state_->out.position()));
    return state_->out.temporary();
  });
}

void writer::abandon() noexcept {
  if (!state_) return;
  state_->journal.reset();
  state_->out.abandon();
}

result<void> writer::amend(std::span<const std::pair<std::string, std::string>> texts) {
  return flywheel::detail::guarded([&]() -> result<void> {
    if (!state_ || state_->finished || state_->journal)
      return error{errc::invalid_argument, "this writer's header cannot be amended", {}};
    state& s = *state_;
    std::string header(static_cast<std::size_t>(s.offsets.empty() ? s.end : s.offsets[0]), '\0');
    const std::uint64_t position = s.out.position();
    FLYWHEEL_CHECK(s.out.seek(position));  // what is pending goes to the file
    FLYWHEEL_TRY(const bool there, s.out.read(0, std::as_writable_bytes(std::span(header))));
    if (!there) return error{errc::io, "the header cannot be read back", s.out.where()};
    for (const auto& [from, to] : texts) {
      if (from.empty() || from.size() != to.size())
        return error{errc::invalid_argument, "a text of the header can only become one of the same length", {}};
      for (std::size_t at = header.find(from); at != std::string::npos; at = header.find(from, at + to.size()))
        header.replace(at, to.size(), to);
    }
    FLYWHEEL_CHECK(s.out.seek(0));
    FLYWHEEL_CHECK(s.out.write(std::as_bytes(std::span(header))));
    return s.out.seek(position);
  });
}

result<void> writer::finish() {
  return flywheel::detail::guarded([&]() -> result<void> {
    if (!state_ || state_->finished) return error{errc::invalid_argument, "the writer has finished", {}};
    state& s = *state_;
    // Complete tensors may lie behind incomplete ones that were passed over.
    if (const auto open = std::find(s.done.begin(), s.done.end(), false);
        s.current == s.names.size() && open != s.done.end())
      s.current = static_cast<std::size_t>(open - s.done.begin());
    if (s.current < s.names.size())
      return s.refuse("the tensor lacks " + std::to_string(s.layout.bytes[s.current] - s.written) + " bytes");
    s.finished = true;
    if (s.journal) FLYWHEEL_CHECK(s.out.resize(s.end));
    s.journal.reset();
    return s.out.commit();
  });
}

}  // namespace flywheel::inline v0::io
