#include "src/io/byte_source.hpp"

#include <cstring>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::io {

byte_source::~byte_source() = default;

namespace detail {
namespace {

error beyond_end() { return {errc::invalid_argument, "the range lies beyond the end of the file", {}}; }

/// Bytes that are addressable: a mapped file, the host's memory, or its own.
class memory_source final : public byte_source {
 public:
  memory_source(std::span<const std::byte> bytes, std::shared_ptr<const mapped_file> file)
      : bytes_(bytes), file_(std::move(file)) {}
  explicit memory_source(buffer own) : own_(std::move(own)), bytes_(own_.bytes()) {}
  [[nodiscard]] std::uint64_t size() const noexcept override { return bytes_.size(); }
  [[nodiscard]] std::span<const std::byte> mapped() const noexcept override { return bytes_; }
  [[nodiscard]] result<void> read(std::uint64_t offset, std::span<std::byte> out) const override {
    return flywheel::detail::guarded([&]() -> result<void> {
      if (offset > bytes_.size() || out.size() > bytes_.size() - offset) return beyond_end();
      if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
      return {};
    });
  }
  [[nodiscard]] const mapped_file* file() const noexcept { return file_.get(); }
  void release(std::uint64_t offset, std::uint64_t length) const noexcept override {
    if (file_ && offset <= bytes_.size() && length <= bytes_.size() - offset)
      file_->release(static_cast<std::size_t>(offset), static_cast<std::size_t>(length));
  }

 private:
  buffer own_;
  std::span<const std::byte> bytes_;
  std::shared_ptr<const mapped_file> file_;
};

class callback_source final : public byte_source {
 public:
  explicit callback_source(const reader_callback& reader) : reader_(reader) {}
  [[nodiscard]] std::uint64_t size() const noexcept override { return reader_.size; }
  [[nodiscard]] result<void> read(std::uint64_t offset, std::span<std::byte> out) const override {
    return flywheel::detail::guarded([&]() -> result<void> {
      if (offset > reader_.size || out.size() > reader_.size - offset) return beyond_end();
      if (!out.empty() && !reader_.read(reader_.user, offset, out.data(), out.size()))
        return error{errc::io, "the reader callback failed at byte " + std::to_string(offset), {}};
      return {};
    });
  }

 private:
  reader_callback reader_;
};

}  // namespace

source_ptr make_source(std::shared_ptr<const mapped_file> file) {
  const std::span<const std::byte> bytes = file->bytes();
  return std::make_shared<memory_source>(bytes, std::move(file));
}

source_ptr make_source(std::span<const std::byte> bytes) { return std::make_shared<memory_source>(bytes, nullptr); }

source_ptr make_source(buffer bytes) { return std::make_shared<memory_source>(std::move(bytes)); }

source_ptr make_source(const reader_callback& reader) { return std::make_shared<callback_source>(reader); }

std::vector<std::filesystem::path> files_of(const archive& of) {
  std::vector<std::filesystem::path> files;
  for (const source_ptr& source : of.sources())
    if (const auto* addressable = dynamic_cast<const memory_source*>(source.get());
        addressable != nullptr && addressable->file() != nullptr)
      files.push_back(addressable->file()->path());
  return files;
}

}  // namespace detail
}  // namespace flywheel::inline v0::io
