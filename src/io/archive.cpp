#include "flywheel/io/archive.hpp"

#include <charconv>
#include <cstdio>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/byte_source.hpp"
#include "src/io/gguf.hpp"
#include "src/io/reading.hpp"

namespace flywheel::inline v0::io {

struct archive::state {
  io::container container = io::container::gguf;
  std::uint32_t version = 0;
  io::metadata metadata;
  std::vector<tensor_info> tensors;
  std::unordered_map<std::string_view, std::uint32_t> index;  // name -> place in tensors, whose strings it views
  std::vector<detail::source_ptr> sources;                    // one per part
  std::uint64_t file_bytes = 0;
  std::uint32_t parts = 0;
  std::filesystem::path path;
  std::string where;
};

namespace {

using detail::in_quotes;
using detail::part_content;
using detail::source_ptr;

constexpr std::string_view split_keys[] = {"split.no", "split.count", "split.tensors.count"};

/// What a file is by its first bytes. `name` (may be empty) decides where they say nothing.
enum class kind : std::uint8_t { gguf, safetensors, index };

result<kind> kind_of(const byte_source& source, std::string_view name, const std::string& where) {
  const auto refuse = [&](std::string message) { return error{errc::malformed, std::move(message), where}; };
  if (source.size() == 0) return refuse("the file is empty");
  std::byte head[9] = {};
  const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(sizeof head, source.size()));
  if (result<void> done = source.read(0, std::span(head).first(n)); !done)
    return error{done.error().code, done.error().message, where};
  const std::string_view text(reinterpret_cast<const char*>(head), n);
  if (text.starts_with(detail::gguf_magic)) return kind::gguf;
  if (name.ends_with(".safetensors")) return kind::safetensors;
  if (name.ends_with(".json")) return kind::index;
  if (n == 9 && text[8] == '{') return kind::safetensors;
  for (const std::string_view old : {"GGML", "lmgg", "fmgg", "tjgg", "algg"})
    if (text.starts_with(old)) return refuse("this is a model in a format older than GGUF; convert it again");
  return refuse("this is neither a GGUF nor a safetensors file");
}

void add_part(archive::state& s, source_ptr source, part_content&& part) {
  const auto number = static_cast<std::uint32_t>(s.sources.size());
  s.file_bytes += source->size();
  s.sources.push_back(std::move(source));
  ++s.parts;
  s.tensors.reserve(s.tensors.size() + part.tensors.size());
  for (tensor_info& tensor : part.tensors) {
    tensor.part = number;
    s.tensors.push_back(std::move(tensor));
  }
  if (number == 0) {
    s.metadata = std::move(part.metadata);
    s.version = part.version;
  }
}

result<archive> finish(std::shared_ptr<archive::state> s) {
  s->index.reserve(s->tensors.size());
  for (std::uint32_t i = 0; i < s->tensors.size(); ++i)
    if (!s->index.emplace(s->tensors[i].name, i).second)
      return error{errc::malformed, "there are two tensors with this name",
                   s->where + ": tensor " + in_quotes(s->tensors[i].name)};
  return archive(std::move(s));
}

struct split_place {
  std::int64_t number = 0;  ///< From 0.
  std::int64_t count = 1;   ///< 1: not split.
};

result<split_place> split_of(const part_content& part, const std::string& where) {
  split_place place;
  const auto malformed = [&](std::string_view key, std::string message) {
    return error{errc::malformed, std::move(message), where + ": key " + in_quotes(key)};
  };
  if (!part.metadata.contains("split.count")) return place;
  const result<std::int64_t> count = part.metadata.integer("split.count");
  if (!count) return malformed("split.count", count.error().message);
  if (*count < 0 || *count > 99999)
    return malformed("split.count", "a file cannot be split into " + std::to_string(*count));
  if (*count <= 1) return place;
  place.count = *count;
  const result<std::int64_t> number = part.metadata.integer("split.no");
  if (!number) return malformed("split.no", number.error().message);
  if (*number < 0 || *number >= *count)
    return malformed("split.no",
                     "part " + std::to_string(*number) + " of " + std::to_string(*count) + " does not exist");
  place.number = *number;
  return place;
}

std::string split_suffix(split_place place) {
  char text[64];
  std::snprintf(text, sizeof text, "-%05d-of-%05d.gguf", static_cast<int>(place.number) + 1,
                static_cast<int>(place.count));
  return text;
}

result<source_ptr> map_file(const std::filesystem::path& path) {
  FLYWHEEL_TRY(std::shared_ptr<const mapped_file> file, mapped_file::open(path));
  return detail::make_source(std::move(file));
}

result<archive> open_gguf(std::shared_ptr<archive::state> s, source_ptr source) {
  FLYWHEEL_TRY(part_content part, detail::read_gguf(*source, s->where));
  FLYWHEEL_TRY(const split_place place, split_of(part, s->where));
  if (place.count == 1) {
    add_part(*s, std::move(source), std::move(part));
    return finish(std::move(s));
  }
  const auto refuse = [&](errc code, std::string message) { return error{code, std::move(message), s->where}; };
  const std::string which = "part " + std::to_string(place.number + 1) + " of " + std::to_string(place.count);
  if (s->path.empty())
    return refuse(errc::unsupported,
                  "this is " + which + " of a split model; open it by its path, so that the others are found");
  const std::string name = s->path.filename().string();
  const std::string suffix = split_suffix(place);
  if (!name.ends_with(suffix))
    return refuse(errc::malformed, "this is " + which + " of a split model, so its name must end with " + suffix +
                                       " for the others to be found");
  const std::string stem = name.substr(0, name.size() - suffix.size());

  std::optional<std::int64_t> expected;
  for (std::int64_t i = 0; i < place.count; ++i) {
    part_content content;
    source_ptr bytes;
    std::string where = s->where;
    if (i == place.number) {
      content = std::move(part);
      bytes = source;
    } else {
      const std::filesystem::path path = s->path.parent_path() / (stem + split_suffix({i, place.count}));
      where = path.string();
      result<source_ptr> opened = map_file(path);
      if (!opened && opened.error().code == errc::not_found)
        return error{errc::not_found, "this part of the split model does not exist", where};
      if (!opened) return std::move(opened).error();
      bytes = *std::move(opened);
      FLYWHEEL_TRY(content, detail::read_gguf(*bytes, where));
      FLYWHEEL_TRY(const split_place found, split_of(content, where));
      if (found.number != i || found.count != place.count)
        return error{errc::malformed, "the keys split.no and split.count do not fit the file's name", where};
    }
    if (content.metadata.contains("split.tensors.count")) {
      const result<std::int64_t> total = content.metadata.integer("split.tensors.count");
      if (!total || expected.value_or(*total) != *total)
        return error{errc::malformed, "the key split.tensors.count is not the same integer as in the other parts",
                     where};
      expected = *total;
    }
    add_part(*s, std::move(bytes), std::move(content));
  }
  if (expected && *expected != static_cast<std::int64_t>(s->tensors.size()))
    return refuse(errc::malformed, "the parts have " + std::to_string(s->tensors.size()) + " tensors, not the " +
                                       std::to_string(*expected) + " of the key split.tensors.count");
  // The archive is one model: what said how it was split would be wrong in a copy of its metadata.
  for (const std::string_view key : split_keys) s->metadata.erase(key);
  return finish(std::move(s));
}

result<archive> open_index(std::shared_ptr<archive::state> s, const byte_source& source) {
  FLYWHEEL_TRY(auto files, detail::read_safetensors_index(source.mapped(), s->where));
  std::map<std::string, std::size_t> shards;  // file name -> tensors it must have
  for (const auto& [tensor, file] : files) ++shards[file];
  for (const auto& [file, wanted] : shards) {
    const std::filesystem::path path = s->path.parent_path() / file;
    const std::string where = path.string();
    FLYWHEEL_TRY(source_ptr bytes, map_file(path));
    FLYWHEEL_TRY(part_content part, detail::read_safetensors(*bytes, where));
    // The index decides which tensors make the model.
    std::erase_if(part.tensors, [&](const tensor_info& tensor) {
      const auto listed = files.find(tensor.name);
      return listed == files.end() || listed->second != file;
    });
    if (part.tensors.size() < wanted) {
      for (const tensor_info& tensor : part.tensors) files.erase(tensor.name);
      for (const auto& [tensor, in] : files)
        if (in == file)
          return error{
              errc::malformed,
              "the index " + in_quotes(s->path.filename().string()) + " names this tensor, which the file lacks",
              where + ": tensor " + in_quotes(tensor)};
    }
    add_part(*s, std::move(bytes), std::move(part));
  }
  return finish(std::move(s));
}

result<archive> open_any(std::shared_ptr<archive::state> s, source_ptr source) {
  FLYWHEEL_TRY(const kind what, kind_of(*source, s->path.filename().string(), s->where));
  if (what == kind::gguf) {
    s->container = container::gguf;
    return open_gguf(std::move(s), std::move(source));
  }
  s->container = container::safetensors;
  if (what == kind::index) return open_index(std::move(s), *source);
  FLYWHEEL_TRY(part_content part, detail::read_safetensors(*source, s->where));
  add_part(*s, std::move(source), std::move(part));
  return finish(std::move(s));
}

/// Whether values of this type may be used where they lie. Block formats hold 2-byte fields.
bool aligned(const std::byte* data, dtype type) noexcept {
  const dtype_info* facts = info(type);
  if (facts == nullptr) return true;
  const bool quantized = facts->kind == dtype_kind::block || facts->kind == dtype_kind::row;
  const std::size_t alignment = quantized ? 2 : facts->block_bytes;
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0;
}

/// The tensor's bytes in place; empty when they are not addressable or not aligned.
std::span<const std::byte> in_place(const archive::state& s, const tensor_info& tensor) noexcept {
  const std::span<const std::byte> all = s.sources[tensor.part]->mapped();
  if (all.size() != s.sources[tensor.part]->size() || tensor.bytes == 0) return {};
  const auto bytes = all.subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.bytes));
  return aligned(bytes.data(), tensor.type) ? bytes : std::span<const std::byte>{};
}

/// Descriptions of tensors come back from callers: nothing is read through one that does not fit the files.
result<void> check_info(const archive::state* s, const tensor_info& tensor) {
  if (s == nullptr) return error{errc::invalid_argument, "the archive is empty", tensor.name};
  if (tensor.part >= s->sources.size() || tensor.offset > s->sources[tensor.part]->size() ||
      tensor.bytes > s->sources[tensor.part]->size() - tensor.offset)
    return error{errc::invalid_argument, "the tensor is not of this archive",
                 s->where + ": tensor " + in_quotes(tensor.name)};
  return {};
}

/// Whether the shape, in elements of this type, takes the bytes that are stored.
bool fits(const dtype_info& type, const tensor_info& tensor) noexcept {
  const std::optional<std::int64_t> elements = detail::checked_elements(tensor.dims.dims());
  return elements && detail::checked_bytes(type, *elements, tensor.dims.cols()) == tensor.bytes;
}

}  // namespace

result<archive> archive::open(const std::filesystem::path& path) {
  return flywheel::detail::guarded([&]() -> result<archive> {
    auto s = std::make_shared<state>();
    s->path = path;
    s->where = path.string();
    FLYWHEEL_TRY(source_ptr source, map_file(path));
    return open_any(std::move(s), std::move(source));
  });
}

result<archive> archive::open(std::span<const std::byte> bytes) {
  return flywheel::detail::guarded([&]() -> result<archive> {
    auto s = std::make_shared<state>();
    s->where = "memory";
    return open_any(std::move(s), detail::make_source(bytes));
  });
}

result<archive> archive::open(const reader_callback& reader) {
  return flywheel::detail::guarded([&]() -> result<archive> {
    if (reader.read == nullptr) return error{errc::invalid_argument, "the reader callback has no function", "reader"};
    auto s = std::make_shared<state>();
    s->where = "reader";
    return open_any(std::move(s), detail::make_source(reader));
  });
}

result<archive> archive::assemble(archive_content content) {
  return flywheel::detail::guarded([&]() -> result<archive> {
    auto s = std::make_shared<state>();
    s->version = detail::gguf_version;
    s->where = content.path.empty() ? "archive" : content.path.string();
    s->path = std::move(content.path);
    s->metadata = std::move(content.metadata);
    s->tensors = std::move(content.tensors);
    s->sources = std::move(content.sources);
    s->file_bytes = content.file_bytes;
    s->parts = content.files;
    for (const tensor_info& tensor : s->tensors) {
      if (tensor.part < s->sources.size() && s->sources[tensor.part] == nullptr)
        return error{errc::invalid_argument, "a source is missing", s->where};
      if (result<void> inside = check_info(s.get(), tensor); !inside)
        return error{errc::malformed, "the tensor lies outside its source", inside.error().where};
      // Of an opaque type only the bytes are known.
      if (const dtype_info* facts = info(tensor.type); facts != nullptr && !fits(*facts, tensor))
        return error{errc::malformed, "the shape does not fit the stored bytes",
                     s->where + ": tensor " + in_quotes(tensor.name)};
    }
    return finish(std::move(s));
  });
}

container archive::container() const noexcept { return state_ ? state_->container : io::container::gguf; }
std::uint32_t archive::version() const noexcept { return state_ ? state_->version : 0; }
const metadata& archive::metadata() const noexcept {
  static const io::metadata none;
  return state_ ? state_->metadata : none;
}
std::span<const tensor_info> archive::tensors() const noexcept {
  return state_ ? std::span<const tensor_info>(state_->tensors) : std::span<const tensor_info>();
}
const tensor_info* archive::find(std::string_view name) const noexcept {
  if (!state_) return nullptr;
  const auto found = state_->index.find(name);
  return found == state_->index.end() ? nullptr : &state_->tensors[found->second];
}
std::uint64_t archive::file_bytes() const noexcept { return state_ ? state_->file_bytes : 0; }
std::uint32_t archive::parts() const noexcept { return state_ ? state_->parts : 0; }
std::span<const std::shared_ptr<const byte_source>> archive::sources() const noexcept {
  return state_ ? std::span<const source_ptr>(state_->sources) : std::span<const source_ptr>();
}
const std::filesystem::path& archive::path() const noexcept {
  static const std::filesystem::path none;
  return state_ ? state_->path : none;
}

result<tensor_view> archive::view(const tensor_info& tensor) const {
  return flywheel::detail::guarded([&]() -> result<tensor_view> {
    FLYWHEEL_CHECK(check_info(state_.get(), tensor));
    const auto refuse = [&](errc code, std::string message) {
      return error{code, std::move(message), state_->where + ": tensor " + in_quotes(tensor.name)};
    };
    const dtype_info* facts = info(tensor.type);
    if (facts == nullptr)
      return refuse(errc::unsupported,
                    "unsupported tensor type " + std::to_string(static_cast<std::uint32_t>(tensor.type)));
    if (!fits(*facts, tensor)) return refuse(errc::invalid_argument, "the shape does not fit the stored bytes");
    const std::span<const std::byte> bytes = in_place(*state_, tensor);
    if (bytes.empty() && tensor.bytes > 0)
      return refuse(errc::unsupported,
                    state_->sources[tensor.part]->mapped().empty()
                        ? "the tensor is computed or read through a callback, so it is nowhere in place; copy the bytes"
                        : "the tensor is not aligned in the file; copy the bytes");
    return tensor_view(tensor.type, tensor.dims, bytes.data());
  });
}

result<std::span<const std::byte>> archive::bytes(const tensor_info& tensor, buffer& scratch,
                                                  std::pmr::memory_resource* memory) const {
  return flywheel::detail::guarded([&]() -> result<std::span<const std::byte>> {
    FLYWHEEL_CHECK(check_info(state_.get(), tensor));
    if (const std::span<const std::byte> bytes = in_place(*state_, tensor); !bytes.empty()) return bytes;
    if (!std::in_range<std::size_t>(tensor.bytes))
      return error{errc::out_of_memory, "the tensor is larger than the address space", tensor.name};
    const auto n = static_cast<std::size_t>(tensor.bytes);
    if (scratch.size() < n) {
      FLYWHEEL_TRY(scratch, buffer::allocate(n, memory));
    }
    FLYWHEEL_CHECK(read(tensor, 0, scratch.mutable_bytes().first(n)));
    return scratch.bytes().first(n);
  });
}

result<void> archive::read(const tensor_info& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  return flywheel::detail::guarded([&]() -> result<void> {
    FLYWHEEL_CHECK(check_info(state_.get(), tensor));
    const std::string where = state_->where + ": tensor " + in_quotes(tensor.name);
    if (offset > tensor.bytes || out.size() > tensor.bytes - offset)
      return error{errc::invalid_argument, "the range lies beyond the end of the tensor", where};
    if (result<void> done = state_->sources[tensor.part]->read(tensor.offset + offset, out); !done)
      return error{done.error().code, done.error().message, where};
    return {};
  });
}

void archive::release(const tensor_info& tensor) const noexcept {
  if (state_ && tensor.part < state_->sources.size())
    state_->sources[tensor.part]->release(tensor.offset, tensor.bytes);
}

}  // namespace flywheel::inline v0::io
