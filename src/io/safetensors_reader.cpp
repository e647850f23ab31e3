// safetensors: u64 length of a JSON header, the header {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin,
// end]}, ..., "__metadata__": {"key": "text"}}, then the data. The tensors must cover the data without gap or overlap.
// The JSON is read event by event with a bound on its depth, so its nesting costs neither stack nor memory.
#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "src/io/reading.hpp"
#include "src/io/safetensors.hpp"

namespace flywheel::inline v0::io::detail {
namespace {

using nlohmann::json;

/// Base of the two event handlers: keeps the depth, remembers the first error, and skips values nobody asked for.
class bounded_sax {
 public:
  explicit bounded_sax(const std::string& where) : where_(where) {}
  [[nodiscard]] std::optional<error>& fault() noexcept { return fault_; }

  bool parse_error(std::size_t position, const std::string&, const json::exception&) {
    return fail("the JSON is not valid near its byte " + std::to_string(position));
  }

 protected:
  static constexpr int max_depth = 8;

  bool fail(std::string message, errc code = errc::malformed) {
    if (!fault_) fault_ = error{code, std::move(message), subject_.empty() ? where_ : where_ + ": " + subject_};
    return false;
  }
  bool enter() { return ++depth_ <= max_depth || fail("the JSON is nested too deeply"); }
  void leave() { --depth_; }

  const std::string& where_;
  std::string subject_;
  std::optional<error> fault_;
  int depth_ = 0;
};

/// The header of a safetensors file. Depth 1: names; depth 2: a tensor's fields or the metadata; depth 3: the numbers
/// of a field. Unknown fields of a tensor are skipped.
class header_sax final : public bounded_sax {
 public:
  header_sax(const std::string& where, part_content& content) : bounded_sax(where), content_(content) {}

  bool null() { return skipped() || unexpected(); }
  bool boolean(bool) { return skipped() || unexpected(); }
  bool number_integer(std::int64_t v) { return skipped() || fail("the number " + std::to_string(v) + " is negative"); }
  bool number_unsigned(std::uint64_t v) {
    if (skipped()) return true;
    if (depth_ != 3 || (field_ != field::shape && field_ != field::offsets)) return unexpected();
    if (field_ == field::offsets) {
      if (offsets_ == 2) return fail("data_offsets has more than two numbers");
      (offsets_++ == 0 ? tensor_.offset : end_) = v;
      return true;
    }
    if (rank_ == shape::max_rank)
      return fail("more than " + std::to_string(shape::max_rank) + " dimensions are not supported", errc::unsupported);
    if (!std::in_range<std::int64_t>(v)) return fail("a dimension exceeds 63 bits");
    dims_[rank_++] = static_cast<std::int64_t>(v);
    return true;
  }
  bool number_float(double, const std::string& text) {
    return skipped() || fail("the number " + in_quotes(text) + " is not a non-negative integer of 64 bits");
  }
  bool binary(json::binary_t&) { return unexpected(); }

  bool string(std::string& text) {
    if (skipped()) return true;
    if (depth_ == 2 && in_metadata_) {
      if (content_.metadata.contains(name_)) return fail("the key appears twice");
      if (content_.metadata.entries().size() == max_keys) return fail("too many keys", errc::unsupported);
      content_.metadata.set(name_, std::move(text));
      return true;
    }
    if (depth_ != 2 || field_ != field::dtype) return unexpected();
    const dtype_info* type = safetensors_dtype(text);
    if (type == nullptr) return fail("the dtype " + in_quotes(text) + " is not supported", errc::unsupported);
    tensor_.type = type->type;
    return true;
  }

  bool key(std::string& text) {
    if (skipping_) return true;
    if (depth_ == 1) {
      in_metadata_ = text == "__metadata__";
      subject_ = in_metadata_ ? text : "tensor " + in_quotes(text);
      if (text.empty()) return fail("the name is empty");
      if (text.size() > max_name_bytes) return fail("the name is too long");
      name_ = std::move(text);
      return true;
    }
    if (in_metadata_) {
      subject_ = "key " + in_quotes(text);
      name_ = std::move(text);
      return true;
    }
    field_ = text == "dtype"          ? field::dtype
             : text == "shape"        ? field::shape
             : text == "data_offsets" ? field::offsets
                                      : field::other;
    const auto bit = 1U << static_cast<unsigned>(field_);
    if (field_ != field::other && (seen_ & bit) != 0) return fail("the field " + in_quotes(text) + " appears twice");
    seen_ |= bit;
    return true;
  }

  bool start_object(std::size_t) {
    if (!enter()) return false;
    if (skipping_ || start_skipping()) return true;
    if (depth_ > 2) return unexpected();
    if (depth_ == 2 && !in_metadata_) {
      if (content_.tensors.size() == max_tensors)
        return fail("more than " + std::to_string(max_tensors) + " tensors", errc::unsupported);
      tensor_ = {};
      tensor_.name = name_;
      seen_ = 0;
      rank_ = 0;
      offsets_ = 0;
    }
    if (depth_ == 2 && in_metadata_ && std::exchange(had_metadata_, true)) return fail("__metadata__ appears twice");
    return true;
  }
  bool end_object() {
    leave();
    if (skipping_) return stop_skipping();
    if (depth_ == 1 && !in_metadata_ && !finish_tensor()) return false;
    if (depth_ == 1) subject_.clear();
    return true;
  }
  bool start_array(std::size_t) {
    if (!enter()) return false;
    if (skipping_ || start_skipping()) return true;
    return depth_ == 3 && (field_ == field::shape || field_ == field::offsets) && !in_metadata_ ? true : unexpected();
  }
  bool end_array() {
    leave();
    return skipping_ ? stop_skipping() : true;
  }

 private:
  enum class field : std::uint8_t { dtype, shape, offsets, other };

  bool unexpected() { return fail("the header's JSON has an unexpected value"); }
  [[nodiscard]] bool skipped() const { return skipping_ || (depth_ == 2 && !in_metadata_ && field_ == field::other); }
  bool start_skipping() {  // an unknown field's value begins at depth 3
    skipping_ = depth_ == 3 && !in_metadata_ && field_ == field::other;
    return skipping_;
  }
  bool stop_skipping() {
    if (depth_ == 2) skipping_ = false;
    return true;
  }

  bool finish_tensor() {
    if ((seen_ & 7U) != 7U || offsets_ != 2) return fail("dtype, shape or data_offsets is missing");
    const std::span<const std::int64_t> dims(dims_, rank_);
    const std::optional<std::int64_t> elements = checked_elements(dims);
    if (!elements) return fail("the number of elements exceeds 63 bits");
    const std::optional<std::uint64_t> bytes = checked_bytes(*info(tensor_.type), *elements, 1);
    if (end_ < tensor_.offset) return fail("its data end before they begin");
    tensor_.bytes = end_ - tensor_.offset;
    if (!bytes || *bytes != tensor_.bytes)
      return fail("its data have " + std::to_string(tensor_.bytes) + " bytes, which does not fit its shape and dtype");
    result<shape> checked = shape::of(dims);
    if (!checked) return fail(checked.error().message, checked.error().code);
    tensor_.dims = *checked;
    content_.tensors.push_back(std::move(tensor_));
    field_ = field::other;
    return true;
  }

  part_content& content_;
  std::string name_;
  tensor_info tensor_;
  std::uint64_t end_ = 0;
  std::int64_t dims_[shape::max_rank] = {};
  std::size_t rank_ = 0;
  int offsets_ = 0;
  unsigned seen_ = 0;
  field field_ = field::other;
  bool in_metadata_ = false;
  bool had_metadata_ = false;
  bool skipping_ = false;
};

/// {"metadata": {...}, "weight_map": {"tensor": "file"}}; everything else is skipped.
class index_sax final : public bounded_sax {
 public:
  explicit index_sax(const std::string& where) : bounded_sax(where) {}
  [[nodiscard]] std::map<std::string, std::string>& files() noexcept { return files_; }
  [[nodiscard]] bool found() const noexcept { return found_; }

  bool null() { return other(); }
  bool boolean(bool) { return other(); }
  bool number_integer(std::int64_t) { return other(); }
  bool number_unsigned(std::uint64_t) { return other(); }
  bool number_float(double, const std::string&) { return other(); }
  bool binary(json::binary_t&) { return other(); }
  bool string(std::string& text) {
    if (!in_map_ || depth_ != 2) return other();
    // Only a plain name: a file must not reach outside its folder.
    if (text.empty() || text == "." || text == ".." || text.find_first_of(std::string_view("/\\:\0", 4)) != text.npos)
      return fail("the file name " + in_quotes(text) + " is not the name of a file in the same folder");
    if (files_.size() == max_tensors) return fail("too many tensors", errc::unsupported);
    if (!files_.emplace(name_, std::move(text)).second) return fail("the tensor is listed twice");
    return true;
  }
  bool key(std::string& text) {
    if (depth_ == 1) {
      in_map_ = text == "weight_map";
      if (in_map_ && std::exchange(found_, true)) return fail("weight_map appears twice");
    } else if (in_map_) {
      subject_ = "tensor " + in_quotes(text);
      name_ = std::move(text);
    }
    return true;
  }
  bool start_object(std::size_t) { return enter() && (!in_map_ || depth_ <= 2 || other()); }
  bool end_object() {
    leave();
    subject_.clear();
    return true;
  }
  bool start_array(std::size_t) { return enter() && other(); }
  bool end_array() {
    leave();
    return true;
  }

 private:
  bool other() { return depth_ > 0 && !in_map_ ? true : fail("the index's JSON has an unexpected value"); }
  std::map<std::string, std::string> files_;
  std::string name_;
  bool in_map_ = false;
  bool found_ = false;
};

template <class Handler>
bool parse(std::span<const std::byte> text, Handler& handler) {
  const char* begin = reinterpret_cast<const char*>(text.data());
  return json::sax_parse(begin, begin + text.size(), &handler) && !handler.fault();
}

}  // namespace

result<part_content> read_safetensors(const byte_source& source, const std::string& where) {
  const auto malformed = [&](std::string message) { return error{errc::malformed, std::move(message), where}; };
  if (source.size() < 8) return malformed("the file ends inside the header's length");
  std::byte length_bytes[8];
  if (result<void> done = source.read(0, length_bytes); !done)
    return error{done.error().code, done.error().message, where};
  std::uint64_t length = 0;
  for (int i = 8; i-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(length_bytes[i]);
  const std::uint64_t rest = source.size() - 8;
  if (length > rest)
    return malformed("the header's length, " + std::to_string(length) + ", is more than the " + std::to_string(rest) +
                     " bytes left");
  if (length > max_json_bytes)
    return error{errc::unsupported, "the header is longer than " + std::to_string(max_json_bytes) + " bytes", where};

  std::vector<std::byte> copy;
  std::span<const std::byte> text;
  if (const std::span<const std::byte> all = source.mapped(); all.size() == source.size()) {
    text = all.subspan(8, static_cast<std::size_t>(length));
  } else {
    copy.resize(static_cast<std::size_t>(length));
    if (result<void> done = source.read(8, copy); !done) return error{done.error().code, done.error().message, where};
    text = copy;
  }
  if (text.empty() || text[0] != std::byte{'{'}) return malformed("the header does not begin with '{'");

  part_content content;
  header_sax handler(where, content);
  if (!parse(text, handler))
    return handler.fault() ? *std::move(handler.fault()) : malformed("the header is not valid JSON");

  const std::uint64_t data = rest - length;
  std::vector<tensor_info>& tensors = content.tensors;
  std::stable_sort(tensors.begin(), tensors.end(), [](const tensor_info& a, const tensor_info& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes;
  });
  std::uint64_t end = 0;
  for (tensor_info& tensor : tensors) {
    const auto refuse = [&](std::string message) {
      return error{errc::malformed, std::move(message), where + ": tensor " + in_quotes(tensor.name)};
    };
    if (tensor.offset < end) return refuse("its data overlap another tensor's");
    if (tensor.offset > end) return refuse("the bytes before its data belong to no tensor");
    if (tensor.bytes > data - end) return refuse("its data reach beyond the end of the file; is it complete?");
    end += tensor.bytes;
    tensor.offset += 8 + length;
  }
  if (end != data) return malformed("the last " + std::to_string(data - end) + " bytes belong to no tensor");
  return content;
}

result<std::map<std::string, std::string>> read_safetensors_index(std::span<const std::byte> text,
                                                                  const std::string& where) {
  if (text.size() > max_json_bytes)
    return error{errc::unsupported, "the index is longer than " + std::to_string(max_json_bytes) + " bytes", where};
  index_sax handler(where);
  if (!parse(text, handler))
    return handler.fault() ? *std::move(handler.fault()) : error{errc::malformed, "the index is not valid JSON", where};
  if (!handler.found() || handler.files().empty())
    return error{errc::malformed, "this JSON file has no weight_map, so it is not the index of a sharded model", where};
  return std::move(handler.files());
}

}  // namespace flywheel::inline v0::io::detail
