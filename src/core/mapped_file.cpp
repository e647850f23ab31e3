#include "flywheel/core/mapped_file.hpp"

#include <cerrno>
#include <system_error>

#include "flywheel/detail/try.hpp"
#include "src/core/platform.hpp"

#if FLYWHEEL_HAS_MMAP
#  include <fcntl.h>
#  include <sys/mman.h>
#  include <sys/stat.h>
#  include <unistd.h>
#else
#  include <fstream>
#  include <limits>
#endif

namespace flywheel::inline v0 {

namespace {

error system_error_of(int number, const char* doing, const std::filesystem::path& path) {
  const bool missing = number == ENOENT || number == ENOTDIR;
  return error{missing ? errc::not_found : errc::io, doing + std::generic_category().message(number), path.string()};
}

#if FLYWHEEL_HAS_MMAP
struct descriptor {
  int number;
  ~descriptor() {
    if (number >= 0) ::close(number);
  }
};
#endif

}  // namespace

#if FLYWHEEL_HAS_MMAP

result<std::shared_ptr<const mapped_file>> mapped_file::open(const std::filesystem::path& path) {
  return detail::guarded([&]() -> result<std::shared_ptr<const mapped_file>> {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    const descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.number < 0) return system_error_of(errno, "cannot open: ", path);
    struct stat facts {};
    if (::fstat(file.number, &facts) != 0) return system_error_of(errno, "cannot read its size: ", path);
    if (S_ISDIR(facts.st_mode)) return error{errc::io, "is a directory, give a file", path.string()};
    if (!S_ISREG(facts.st_mode)) return error{errc::io, "is not a regular file", path.string()};
    const auto size = static_cast<std::uint64_t>(facts.st_size);
    if (size > static_cast<std::size_t>(-1)) return error{errc::out_of_memory, "too large to map", path.string()};

    const std::shared_ptr<mapped_file> opened(new mapped_file);
    opened->path_ = path;
    if (size > 0) {
      void* const start = ::mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_SHARED, file.number, 0);
      if (start == MAP_FAILED) {
        if (errno == ENOMEM) return error{errc::out_of_memory, "not enough address space to map", path.string()};
        return system_error_of(errno, "cannot map: ", path);
      }
      opened->data_ = static_cast<const std::byte*>(start);
      opened->size_ = static_cast<std::size_t>(size);
      opened->mapped_ = true;
    }
    return std::shared_ptr<const mapped_file>(opened);
  });
}

mapped_file::~mapped_file() {
  if (mapped_) ::munmap(const_cast<std::byte*>(data_), size_);
}

namespace {

/// Gives advice about the pages of data[offset, offset + length): those wholly inside (`inner`), or all they touch.
void advise(const std::byte* data, std::size_t size, std::size_t offset, std::size_t length, bool inner, int advice) {
  if (offset >= size) return;
  length = length < size - offset ? length : size - offset;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::size_t begin = offset, end = offset + length;
  if (inner) {
    begin = (begin + page - 1) / page * page;
    if (end != size) end = end / page * page;
  } else {
    begin = begin / page * page;
  }
  if (begin < end) ::madvise(const_cast<std::byte*>(data + begin), end - begin, advice);
}

}  // namespace

void mapped_file::release(std::size_t offset, std::size_t length) const noexcept {
  // A shared read-only mapping loses nothing: the bytes come back from the page cache or the file.
  if (mapped_) advise(data_, size_, offset, length, true, MADV_DONTNEED);
}

void mapped_file::prefetch(std::size_t offset, std::size_t length) const noexcept {
  if (mapped_) advise(data_, size_, offset, length, false, MADV_WILLNEED);
}

#else

result<std::shared_ptr<const mapped_file>> mapped_file::open(const std::filesystem::path& path) {
  return detail::guarded([&]() -> result<std::shared_ptr<const mapped_file>> {
    std::error_code code;
    const std::filesystem::file_status status = std::filesystem::status(path, code);
    if (status.type() == std::filesystem::file_type::not_found) return system_error_of(ENOENT, "cannot open: ", path);
    if (code) return error{errc::io, "cannot open: " + code.message(), path.string()};
    if (status.type() == std::filesystem::file_type::directory)
      return error{errc::io, "is a directory, give a file", path.string()};
    if (status.type() != std::filesystem::file_type::regular)
      return error{errc::io, "is not a regular file", path.string()};
    const std::uintmax_t size = std::filesystem::file_size(path, code);
    if (code) return error{errc::io, "cannot read its size: " + code.message(), path.string()};
    if (size > std::numeric_limits<std::size_t>::max())
      return error{errc::out_of_memory, "too large to read", path.string()};

    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file) return system_error_of(errno ? errno : EIO, "cannot open: ", path);
    const std::shared_ptr<mapped_file> opened(new mapped_file);
    opened->path_ = path;
    auto bytes = buffer::allocate(static_cast<std::size_t>(size));
    if (!bytes) return error{bytes.error().code, "not enough memory to read it", path.string()};
    opened->copy_ = *std::move(bytes);
    file.read(reinterpret_cast<char*>(opened->copy_.mutable_data()), static_cast<std::streamsize>(size));
    if (static_cast<std::uintmax_t>(file.gcount()) != size)
      return system_error_of(errno ? errno : EIO, "cannot read: ", path);
    opened->data_ = opened->copy_.data();
    opened->size_ = opened->copy_.size();
    return std::shared_ptr<const mapped_file>(opened);
  });
}

mapped_file::~mapped_file() = default;
void mapped_file::release(std::size_t, std::size_t) const noexcept {}
void mapped_file::prefetch(std::size_t, std::size_t) const noexcept {}

#endif

}  // namespace flywheel::inline v0
