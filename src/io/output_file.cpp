#include "src/io/output_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <system_error>
#include <utility>

#if defined(_WIN32)
#  include <io.h>
#else
#  include <sys/file.h>
#  include <unistd.h>
#endif

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::io::detail {
namespace {

constexpr std::size_t buffer_bytes = 256U << 10;

// The few system calls, by one name each.
#if defined(_WIN32)
int open_new(const std::filesystem::path& path) {
  return _wopen(path.c_str(), _O_CREAT | _O_EXCL | _O_RDWR | _O_BINARY, _S_IREAD | _S_IWRITE);
}
int open_kept(const std::filesystem::path& path) {
  return _wopen(path.c_str(), _O_CREAT | _O_RDWR | _O_BINARY, _S_IREAD | _S_IWRITE);
}
constexpr bool open_files_can_move = false;
bool lock_file(int) { return true; }  // Windows refuses to rename a file that another process holds open
bool is_at(int, const std::filesystem::path&) { return true; }
std::ptrdiff_t write_some(int handle, const std::byte* data, std::size_t n) {
  return _write(handle, data, static_cast<unsigned>(n));
}
std::ptrdiff_t read_some(int handle, std::byte* data, std::size_t n) {
  return _read(handle, data, static_cast<unsigned>(n));
}
bool seek_file(int handle, std::uint64_t to) { return _lseeki64(handle, static_cast<__int64>(to), SEEK_SET) >= 0; }
bool resize_file(int handle, std::uint64_t to) { return _chsize_s(handle, static_cast<__int64>(to)) == 0; }
int sync_file(int handle) { return _commit(handle); }
int close_file(int handle) { return _close(handle); }
void sync_folder(const std::filesystem::path&) {}
#else
int open_new(const std::filesystem::path& path) {
  return ::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
}
/// Not through a link, and without waiting at a pipe.
int open_kept(const std::filesystem::path& path) {
  return ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
}
constexpr bool open_files_can_move = true;
/// File systems without locks say so; two runs at once are then the user's to avoid.
bool lock_file(int handle) { return ::flock(handle, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }
/// Whether this regular file is what the path names.
bool is_at(int handle, const std::filesystem::path& path) {
  struct stat opened {
  }, named{};
  return ::fstat(handle, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 && S_ISREG(opened.st_mode) &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}
std::ptrdiff_t write_some(int handle, const std::byte* data, std::size_t n) { return ::write(handle, data, n); }
std::ptrdiff_t read_some(int handle, std::byte* data, std::size_t n) { return ::read(handle, data, n); }
bool seek_file(int handle, std::uint64_t to) { return ::lseek(handle, static_cast<off_t>(to), SEEK_SET) >= 0; }
bool resize_file(int handle, std::uint64_t to) { return ::ftruncate(handle, static_cast<off_t>(to)) == 0; }
int sync_file(int handle) { return ::fsync(handle); }
int close_file(int handle) { return ::close(handle); }
/// Makes the new name durable. File systems that cannot do it for folders say so; the file itself is safe by then.
void sync_folder(const std::filesystem::path& folder) {
  const int handle = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (handle < 0) return;
  (void)::fsync(handle);
  (void)::close(handle);
}
#endif

/// Sixteen hexadecimal digits that other writers are unlikely to choose at the same time; O_EXCL decides.
std::string unlikely_name(const void* salt, unsigned attempt) {
  std::uint64_t x = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  x = (x ^ reinterpret_cast<std::uintptr_t>(salt)) + attempt;
#if !defined(_WIN32)
  x += static_cast<std::uint64_t>(::getpid()) << 40;
#endif
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  static constexpr char digits[] = "0123456789abcdef";
  std::string name = ".flywheel-";
  for (int i = 0; i < 16; ++i, x >>= 4) name += digits[x & 15];
  return name + ".tmp";
}

error no_folder(const std::string& where) {
  return {errc::not_found, "the folder to write into does not exist", where};
}

error not_ours(const char* what, const std::filesystem::path& path) {
  return {errc::invalid_argument, std::string(what) + "; remove it, or choose another name for the output",
          path.string()};
}

/// Error: invalid_argument, for links and whatever else is no file to go on with.
result<void> check_plain(const std::filesystem::path& path) {
  std::error_code ignored;
  const auto status = std::filesystem::symlink_status(path, ignored);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    return not_ours("something that is no regular file is where work in progress belongs", path);
  return {};
}

}  // namespace

std::uint64_t occupied_bytes(const std::filesystem::path& path) noexcept {
#if defined(_WIN32)
  std::error_code failure;
  const std::uintmax_t bytes = std::filesystem::file_size(path, failure);
  return failure ? 0 : bytes;
#else
  constexpr std::uint64_t block = 512;  // of st_blocks, whatever the file system's own are
  struct stat facts {};
  return ::stat(path.c_str(), &facts) == 0 ? static_cast<std::uint64_t>(facts.st_blocks) * block : 0;
#endif
}

result<output_file> output_file::prepare(const std::filesystem::path& path) {
  output_file file;
  file.path_ = path;
  file.where_ = path.string();
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  if (path.filename().empty() || std::filesystem::is_directory(status))
    return error{errc::invalid_argument, "this is a folder, not the name of a file to write", file.where_};
  // Renaming over a device or a pipe would destroy it.
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    return error{errc::invalid_argument, "this is not a regular file; give the name of one", file.where_};
  // A link stays: the existing file it leads to is replaced.
  if (auto target = std::filesystem::canonical(path, ignored); !ignored) file.path_ = std::move(target);
  file.folder_ = file.path_.parent_path();
  file.pending_.reserve(buffer_bytes);
  return file;
}

result<output_file> output_file::create(const std::filesystem::path& path) {
  FLYWHEEL_TRY(output_file file, prepare(path));
  for (unsigned attempt = 0; file.handle_ < 0; ++attempt) {
    file.temporary_ = file.folder_ / unlikely_name(&file, attempt);
    file.handle_ = open_new(file.temporary_);
    const int code = errno;
    if (file.handle_ >= 0) break;
    if (code == ENOENT) return no_folder(file.where_);
    if (code != EEXIST && code != EINTR) return file.refused("create a file in this folder", code);
    if (attempt == 100) return file.refused("find a free temporary name", code);
  }
  return file;
}

result<output_file> output_file::resume(const std::filesystem::path& path) {
  FLYWHEEL_TRY(output_file file, prepare(path));
  file.resumable_ = true;
  file.temporary_ = file.path_;
  file.temporary_ += ".partial";
  for (unsigned attempt = 0;; ++attempt) {
    FLYWHEEL_CHECK(check_plain(file.temporary_));
    file.handle_ = open_kept(file.temporary_);
    if (file.handle_ < 0)
      return errno == ENOENT ? no_folder(file.where_) : file.refused("create a file beside it", errno);
    if (!lock_file(file.handle_) || attempt == 100)
      return error{errc::io, "another process is writing this file", file.where_};
    // Another run may have renamed or removed it before it gave up the lock.
    if (is_at(file.handle_, file.temporary_)) break;
    file.close();
  }
  FLYWHEEL_CHECK(file.claim());
  return file;
}

result<void> output_file::claim() {
  std::error_code ignored;
  const bool fresh = std::filesystem::file_size(temporary_, ignored) == 0;
  resumable_ = !fresh;
  std::filesystem::path journal = temporary_;
  journal += ".journal";
  FLYWHEEL_CHECK(check_plain(journal));
  std::string mark(journal_mark.size(), ' ');
  std::ifstream in(journal, std::ios::binary);
  in.read(mark.data(), static_cast<std::streamsize>(mark.size()));
  const bool empty = in.gcount() == 0, ours = in && mark == journal_mark;
  if (!ours && !empty) return not_ours("this is no journal of work in progress", journal);
  if (!ours && !fresh)
    return not_ours("this file has no journal that says it is an earlier run's work in progress", temporary_);
  journal_ = std::move(journal);
  if (ours) return {};
  // Before the first byte: whenever the process dies, the next run knows the file.
  std::ofstream out(journal_, std::ios::binary);
  out << journal_mark << '\n';
  out.close();
  if (!out) return refused("create a journal beside it", errno);
  return {};
}

output_file::output_file(output_file&& other) noexcept
    : path_(std::move(other.path_)),
      folder_(std::move(other.folder_)),
      temporary_(std::exchange(other.temporary_, {})),
      journal_(std::exchange(other.journal_, {})),
      where_(std::move(other.where_)),
      pending_(std::move(other.pending_)),
      position_(other.position_),
      handle_(std::exchange(other.handle_, -1)),
      resumable_(other.resumable_) {}

output_file& output_file::operator=(output_file&& other) noexcept {
  if (this != &other) {
    discard();
    path_ = std::move(other.path_);
    folder_ = std::move(other.folder_);
    temporary_ = std::exchange(other.temporary_, {});
    journal_ = std::exchange(other.journal_, {});
    where_ = std::move(other.where_);
    pending_ = std::move(other.pending_);
    position_ = other.position_;
    handle_ = std::exchange(other.handle_, -1);
    resumable_ = other.resumable_;
  }
  return *this;
}

output_file::~output_file() { discard(); }

void output_file::discard() noexcept {
  if (!open_files_can_move) close();
  std::error_code ignored;
  if (!resumable_) {
    std::filesystem::remove(temporary_, ignored);
    std::filesystem::remove(journal_, ignored);
  }
  temporary_.clear();
  journal_.clear();
  close();  // and with it the lock
}

void output_file::close() noexcept {
  if (handle_ >= 0) (void)close_file(std::exchange(handle_, -1));
}

void output_file::abandon() noexcept {
  resumable_ = false;
  discard();
}

error output_file::refused(const char* what, int code) {
  discard();
  return {errc::io, std::string("cannot ") + what + ": " + std::generic_category().message(code), where_};
}

result<void> output_file::write(std::span<const std::byte> bytes) {
  if (handle_ < 0) return error{errc::invalid_argument, "the file was closed after an error or at its end", where_};
  if (bytes.size() > buffer_bytes - pending_.size()) {
    FLYWHEEL_CHECK(flush());
    // Large pieces need no copy.
    const std::size_t whole = bytes.size() / buffer_bytes * buffer_bytes;
    FLYWHEEL_CHECK(write_through(bytes.first(whole)));
    position_ += whole;
    bytes = bytes.subspan(whole);
  }
  pending_.insert(pending_.end(), bytes.begin(), bytes.end());
  position_ += bytes.size();
  return {};
}

result<void> output_file::flush() {
  FLYWHEEL_CHECK(write_through(pending_));
  pending_.clear();
  return {};
}

result<void> output_file::write_through(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::ptrdiff_t n = write_some(handle_, bytes.data(), std::min<std::size_t>(bytes.size(), 1U << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return refused("write", n < 0 ? errno : ENOSPC);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

result<void> output_file::seek(std::uint64_t position) {
  FLYWHEEL_CHECK(flush());
  if (!seek_file(handle_, position)) return refused("write", errno);
  position_ = position;
  return {};
}

result<bool> output_file::read(std::uint64_t position, std::span<std::byte> out) {
  const std::uint64_t back = position_;
  FLYWHEEL_CHECK(seek(position));
  while (!out.empty()) {
    const std::ptrdiff_t n = read_some(handle_, out.data(), std::min<std::size_t>(out.size(), 1U << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return refused("read what was written before", errno);
    if (n == 0) break;
    out = out.subspan(static_cast<std::size_t>(n));
  }
  FLYWHEEL_CHECK(seek(back));
  return out.empty();
}

result<void> output_file::resize(std::uint64_t bytes) {
  FLYWHEEL_CHECK(flush());
  if (!resize_file(handle_, bytes)) return refused("set the size of the file", errno);
  return {};
}

result<void> output_file::commit() {
  if (handle_ < 0) return error{errc::invalid_argument, "the file was closed after an error or at its end", where_};
  FLYWHEEL_CHECK(flush());
  if (sync_file(handle_) != 0) return refused("flush to the device", errno);
  if (!open_files_can_move) close();
  std::error_code failure;
  std::filesystem::rename(temporary_, path_, failure);
  if (failure) return refused("rename the temporary file", failure.value());
  // Nothing may fail any more: the file is there, and flushed.
  std::filesystem::remove(journal_, failure);
  temporary_.clear();
  journal_.clear();
  sync_folder(folder_);
  close();
  return {};
}

}  // namespace flywheel::inline v0::io::detail
