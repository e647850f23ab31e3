// GGUF versions 2 and 3 (little-endian): magic, u32 version, i64 tensor count, i64 key count; key-values; tensor table;
// data. A file is untrusted: every count and length is checked before anything is allocated for it.
#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/gguf.hpp"
#include "src/io/header_cursor.hpp"
#include "src/io/reading.hpp"

namespace flywheel::inline v0::io::detail {
namespace {

class gguf_reader {
 public:
  gguf_reader(const byte_source& source, const std::string& where)
      : source_(source), cursor_(source, max_header_bytes), where_(where) {}

  result<part_content> run() {
    if (!read_counts() || !read_keys() || !read_tensors() || !place_tensors()) return *std::move(fault_);
    return std::move(content_);
  }

 private:
  /// Records an error about the current subject (a key or tensor). Always false.
  bool fail(errc code, std::string message) {
    if (!fault_) fault_ = error{code, std::move(message), subject_.empty() ? where_ : where_ + ": " + subject_};
    return false;
  }
  /// Passes on the cursor's error.
  bool cut() { return fail(cursor_.fault()->code, cursor_.fault()->message); }

  bool read_counts() {
    char magic[4] = {};
    if (!cursor_.read(std::as_writable_bytes(std::span(magic)), "the magic")) return cut();
    if (std::string_view(magic, 4) != gguf_magic) return fail(errc::malformed, "this is not a GGUF file");
    if (!cursor_.number(content_.version, "the version")) return cut();
    const std::uint32_t version = content_.version;
    if ((version & 0xFFFFU) == 0 && version != 0)
      return fail(errc::unsupported, "this is a big-endian GGUF file; convert it to little-endian");
    if (version != 2 && version != 3)
      return fail(errc::unsupported, "GGUF version " + std::to_string(version) +
                                         " is not supported, only 2 and 3; convert the model again with current tools");
    std::int64_t tensors = 0;
    std::int64_t keys = 0;
    if (!cursor_.number(tensors, "the tensor count") || !cursor_.number(keys, "the key count")) return cut();
    // The shortest key-value takes 14 bytes, the shortest tensor 33.
    if (tensors < 0 || static_cast<std::uint64_t>(tensors) > cursor_.remaining() / 33)
      return fail(errc::malformed, "the file cannot hold the " + std::to_string(tensors) + " tensors it claims");
    if (keys < 0 || static_cast<std::uint64_t>(keys) > cursor_.remaining() / 14)
      return fail(errc::malformed, "the file cannot hold the " + std::to_string(keys) + " keys it claims");
    tensors_ = static_cast<std::uint64_t>(tensors);
    keys_ = static_cast<std::uint64_t>(keys);
    if (tensors_ > max_tensors) return fail(errc::unsupported, "more than " + std::to_string(max_tensors) + " tensors");
    if (keys_ > max_keys) return fail(errc::unsupported, "more than " + std::to_string(max_keys) + " keys");
    return true;
  }

  bool read_keys() {
    for (std::uint64_t i = 0; i < keys_; ++i) {
      subject_ = "key " + std::to_string(i);
      std::string key;
      if (!read_name(key, "a key")) return false;
      subject_ = "key " + in_quotes(key);
      if (content_.metadata.contains(key)) return fail(errc::malformed, "the key appears twice");
      value v;
      if (!read_value(v)) return false;
      content_.metadata.set(std::move(key), std::move(v));
    }
    subject_.clear();
    result<std::uint64_t> alignment = check_reserved_keys(content_.metadata);
    if (!alignment) {
      subject_ = std::move(alignment.error().where);
      return fail(errc::malformed, std::move(alignment.error().message));
    }
    alignment_ = *alignment;
    return true;
  }

  bool read_name(std::string& name, const char* what) {
    if (!cursor_.text(name, what)) return cut();
    if (name.empty()) return fail(errc::malformed, "the name is empty");
    if (name.size() > max_name_bytes)
      return fail(errc::malformed, "the name is longer than " + std::to_string(max_name_bytes) + " bytes");
    if (!valid_utf8(name)) return fail(errc::malformed, "the name " + in_quotes(name) + " is not valid UTF-8");
    return true;
  }

  bool read_value(value& v) {
    std::uint32_t type = 0;
    if (!cursor_.number(type, "a value type")) return cut();
    if (type == array_type) return read_array(v);
    return with_type(type, [&]<class T>(T*) { return read_scalar(v.emplace<T>(), "a value"); });
  }

  bool read_array(value& v) {
    std::uint32_t type = 0;
    std::uint64_t count = 0;
    if (!cursor_.number(type, "an array header") || !cursor_.number(count, "an array header")) return cut();
    if (type == array_type) return fail(errc::unsupported, "arrays of arrays are not supported");
    return with_type(type, [&]<class T>(T*) {
      auto& list = v.emplace<std::vector<T>>();
      if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, bool>) {
        // Each string takes at least its 8 bytes of length, each bool a byte.
        if (count > cursor_.remaining() / (std::is_same_v<T, bool> ? 1 : 8))
          return fail(errc::malformed,
                      "the file cannot hold the " + std::to_string(count) + " elements the array claims");
        list.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(count, max_header_bytes / 8)));
        for (std::uint64_t i = 0; i < count; ++i) {
          T element{};
          if (!read_scalar(element, "an array")) return false;
          list.push_back(std::move(element));
        }
        return true;
      } else {
        return cursor_.numbers(list, count, "an array") || cut();
      }
    });
  }

  template <class T>
  bool read_scalar(T& out, const char* what) {
    if constexpr (std::is_same_v<T, std::string>) {
      return cursor_.text(out, what) || cut();
    } else if constexpr (std::is_same_v<T, bool>) {
      std::uint8_t byte = 0;
      if (!cursor_.number(byte, what)) return cut();
      if (byte > 1) return fail(errc::malformed, "a bool is neither 0 nor 1");
      out = byte != 0;
      return true;
    } else {
      return cursor_.number(out, what) || cut();
    }
  }

  /// Calls f(T*) with the C++ type of a scalar value type.
  template <class F>
  bool with_type(std::uint32_t type, F f) {
    switch (type) {
      case 0:
        return f(static_cast<std::uint8_t*>(nullptr));
      case 1:
        return f(static_cast<std::int8_t*>(nullptr));
      case 2:
        return f(static_cast<std::uint16_t*>(nullptr));
      case 3:
        return f(static_cast<std::int16_t*>(nullptr));
      case 4:
        return f(static_cast<std::uint32_t*>(nullptr));
      case 5:
        return f(static_cast<std::int32_t*>(nullptr));
      case 6:
        return f(static_cast<float*>(nullptr));
      case 7:
        return f(static_cast<bool*>(nullptr));
      case 8:
        return f(static_cast<std::string*>(nullptr));
      case 10:
        return f(static_cast<std::uint64_t*>(nullptr));
      case 11:
        return f(static_cast<std::int64_t*>(nullptr));
      case 12:
        return f(static_cast<double*>(nullptr));
      default:
        return fail(errc::malformed, "value type " + std::to_string(type) + " does not exist");
    }
  }

  bool read_tensors() {
    content_.tensors.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(tensors_, 4096)));
    for (std::uint64_t i = 0; i < tensors_; ++i) {
      subject_ = "tensor " + std::to_string(i);
      tensor_info tensor;
      if (!read_name(tensor.name, "a tensor name")) return false;
      subject_ = "tensor " + in_quotes(tensor.name);
      if (!read_layout(tensor)) return false;
      content_.tensors.push_back(std::move(tensor));
    }
    subject_.clear();
    return true;
  }

  bool read_layout(tensor_info& tensor) {
    std::uint32_t rank = 0;
    if (!cursor_.number(rank, "a tensor's dimensions")) return cut();
    if (rank < 1 || rank > max_gguf_rank)
      return fail(errc::malformed, "a tensor has 1 to 4 dimensions, not " + std::to_string(rank));
    std::int64_t dims[max_gguf_rank] = {};
    for (std::uint32_t d = rank; d-- > 0;) {  // innermost first in the file
      if (!cursor_.number(dims[d], "a tensor's dimensions")) return cut();
      if (dims[d] <= 0) return fail(errc::malformed, "a dimension of " + std::to_string(dims[d]) + " is not positive");
    }
    std::uint32_t type = 0;
    if (!cursor_.number(type, "a tensor's type") || !cursor_.number(tensor.offset, "a tensor's offset")) return cut();
    const std::span<const std::int64_t> extents(dims, rank);
    const std::optional<std::int64_t> elements = checked_elements(extents);
    if (!elements) return fail(errc::malformed, "the number of elements exceeds 63 bits");
    result<shape> dims_of = shape::of(extents);
    if (!dims_of) return fail(dims_of.error().code, dims_of.error().message);
    tensor.dims = *dims_of;
    if (!check_type(type)) return false;
    tensor.type = static_cast<dtype>(type);
    if (const dtype_info* facts = info(tensor.type)) {
      if (tensor.dims.cols() % facts->block_elements != 0)
        return fail(errc::malformed, "rows of " + std::to_string(tensor.dims.cols()) +
                                         " elements are not whole blocks of " + std::string(facts->name) +
                                         ", which have " + std::to_string(facts->block_elements));
      const std::optional<std::uint64_t> bytes = checked_bytes(*facts, *elements, tensor.dims.cols());
      if (!bytes) return fail(errc::malformed, "the size in bytes exceeds 63 bits");
      tensor.bytes = *bytes;
    }
    return true;
  }

  /// Ids that GGUF may come to define are let through as opaque.
  bool check_type(std::uint32_t type) {
    if (gguf_removed_type(type))
      return fail(errc::unsupported,
                  "tensor type " + std::to_string(type) + " was removed from GGUF; convert the model again");
    if (!gguf_has_type(type)) return fail(errc::malformed, "tensor type " + std::to_string(type) + " does not exist");
    return true;
  }

  /// Turns offsets within the data section into offsets within the file, and checks that tensors lie inside the file
  /// and apart from each other.
  bool place_tensors() {
    std::vector<tensor_info>& tensors = content_.tensors;
    if (tensors.empty()) return true;
    const std::uint64_t start = align_up(cursor_.position(), alignment_);
    const std::uint64_t room = source_.size() > start ? source_.size() - start : 0;
    std::vector<std::uint32_t> order(tensors.size());
    std::iota(order.begin(), order.end(), 0U);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return tensors[a].offset < tensors[b].offset; });
    for (std::size_t i = 0; i < order.size(); ++i) {
      tensor_info& tensor = tensors[order[i]];
      const std::uint64_t next = i + 1 < order.size() ? tensors[order[i + 1]].offset : room;
      const auto refuse = [&](errc code, std::string message) {
        subject_ = "tensor " + in_quotes(tensor.name);
        return fail(code, std::move(message));
      };
      if (tensor.offset % alignment_ != 0)
        return refuse(errc::malformed, "its offset is not a multiple of " + std::to_string(alignment_));
      if (tensor.offset > room)
        return refuse(errc::malformed, "its data lie beyond the end of the file; is it complete?");
      if (info(tensor.type) == nullptr) {
        if (next <= tensor.offset) return refuse(errc::malformed, "its data overlap another tensor's or are missing");
        tensor.bytes = std::min(next, room) - tensor.offset;
      }
      if (tensor.bytes > room - tensor.offset)
        return refuse(errc::malformed, "its data reach beyond the end of the file; is it complete?");
      if (i + 1 < order.size() && tensor.bytes > next - tensor.offset)
        return refuse(errc::malformed, "its data overlap those of tensor " + in_quotes(tensors[order[i + 1]].name));
    }
    for (tensor_info& tensor : tensors) tensor.offset += start;
    return true;
  }

  const byte_source& source_;
  header_cursor cursor_;
  const std::string& where_;
  std::string subject_;
  std::optional<error> fault_;
  part_content content_;
  std::uint64_t tensors_ = 0;
  std::uint64_t keys_ = 0;
  std::uint64_t alignment_ = default_alignment;
};

}  // namespace

result<std::uint64_t> check_reserved_keys(const metadata& meta) {
  const auto refuse = [](std::string_view key, std::string message) {
    return error{errc::malformed, std::move(message), "key " + in_quotes(key)};
  };
  // Other strings may be any bytes.
  for (const std::string_view key :
       {"general.architecture", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre"}) {
    const value* v = meta.find(key);
    if (v == nullptr) continue;
    const auto* text = std::get_if<std::string>(v);
    if (text == nullptr) return refuse(key, "the value must be a string but is " + std::string(type_name(*v)));
    if (!valid_utf8(*text)) return refuse(key, "the value is not valid UTF-8");
  }
  const value* v = meta.find(alignment_key);
  if (v == nullptr) return default_alignment;
  const auto* alignment = std::get_if<std::uint32_t>(v);
  if (alignment == nullptr) return refuse(alignment_key, "the value must be u32 but is " + std::string(type_name(*v)));
  if (!valid_alignment(*alignment))
    return refuse(alignment_key, "an alignment of " + std::to_string(*alignment) + " is not a power of two from 8 on");
  return *alignment;
}

result<part_content> read_gguf(const byte_source& source, const std::string& where) {
  return gguf_reader(source, where).run();
}

}  // namespace flywheel::inline v0::io::detail
