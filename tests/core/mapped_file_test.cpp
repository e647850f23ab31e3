#include "flywheel/core/mapped_file.hpp"

#include <algorithm>
#include <fstream>
#include <string>

#include "support/catch.hpp"
#include "support/temp_folder.hpp"

#if defined(__unix__) || defined(__APPLE__)
#  include <sys/stat.h>
#  include <unistd.h>
#endif

using namespace flywheel;
namespace fs = std::filesystem;

namespace {

std::string text(const mapped_file& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

fs::path write(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

}  // namespace

TEST_CASE("a mapped file shows the file's bytes", "[mapped_file]") {
  const test::temp_folder folder;
  std::string content(100000, 'x');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7);
  const fs::path path = write(folder / "data", content);
  result<std::shared_ptr<const mapped_file>> opened = mapped_file::open(path);
  REQUIRE(opened);
  const mapped_file& file = **opened;
  CHECK(file.bytes().size() == content.size());
  CHECK(text(file) == content);
  CHECK(file.path() == path);

  SECTION("advice changes nothing, in range or not") {
    file.prefetch(0, content.size());
    file.release(0, content.size());
    file.release(1, 10);
    file.release(5000, 50000);
    file.release(99999, 1);
    file.release(100000, 1);
    file.release(static_cast<std::size_t>(-1), static_cast<std::size_t>(-1));
    file.release(10, static_cast<std::size_t>(-1));
    file.prefetch(10, static_cast<std::size_t>(-1));
    file.prefetch(static_cast<std::size_t>(-1), 10);
    CHECK(text(file) == content);
  }
  SECTION("it outlives its name") {
    fs::remove(path);
    CHECK(text(file) == content);
  }
}

TEST_CASE("an empty file maps to nothing", "[mapped_file]") {
  const test::temp_folder folder;
  const result<std::shared_ptr<const mapped_file>> opened = mapped_file::open(write(folder / "empty", ""));
  REQUIRE(opened);
  CHECK((*opened)->bytes().empty());
  (*opened)->release(0, 10);
  (*opened)->prefetch(0, 10);
}

TEST_CASE("a missing file is not found", "[mapped_file]") {
  const test::temp_folder folder;
  const error missing = mapped_file::open(folder / "nothing").error();
  CHECK(missing.code == errc::not_found);
  CHECK(missing.where == (folder / "nothing").string());
  CHECK_FALSE(missing.message.empty());
  CHECK(mapped_file::open(write(folder / "plain", "x") / "below").error().code == errc::not_found);
  CHECK(mapped_file::open("").error().code == errc::not_found);
}

TEST_CASE("what is not a regular file is refused", "[mapped_file]") {
  const test::temp_folder folder;
  const error directory = mapped_file::open(folder.path()).error();
  CHECK(directory.code == errc::io);
  CHECK(directory.where == folder.path().string());
  CHECK(directory.message.find("directory") != std::string::npos);
#if defined(__unix__) || defined(__APPLE__)
  CHECK(mapped_file::open("/dev/null").error().code == errc::io);
  const fs::path pipe = folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(mapped_file::open(pipe).error().code == errc::io);  // and does not wait for a writer
#endif
}

#if defined(__unix__) || defined(__APPLE__)
TEST_CASE("a file that the system refuses to open is an io error", "[mapped_file]") {
  const test::temp_folder folder;
  fs::create_symlink(folder / "b", folder / "a");
  fs::create_symlink(folder / "a", folder / "b");
  CHECK(mapped_file::open(folder / "a").error().code == errc::io);
  CHECK(mapped_file::open(folder / std::string(5000, 'n')).error().code == errc::io);

  const fs::path secret = write(folder / "secret", "x");
  fs::permissions(secret, fs::perms::none);
  const result<std::shared_ptr<const mapped_file>> opened = mapped_file::open(secret);
  if (::geteuid() == 0) {
    CHECK(opened);  // root reads everything
  } else {
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == errc::io);
  }
}
#endif

#if defined(__linux__) && !defined(FLYWHEEL_SERIAL)
namespace {

/// Resident pages of files, in bytes.
std::size_t resident_file_bytes() {
  std::ifstream file("/proc/self/statm");
  std::size_t total = 0, resident = 0, shared = 0;
  file >> total >> resident >> shared;
  return shared * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST_CASE("released pages leave the resident memory", "[mapped_file]") {
  const test::temp_folder folder;
  const std::size_t size = std::size_t{16} << 20;
  const std::shared_ptr<const mapped_file> file =
      mapped_file::open(write(folder / "data", std::string(size, 'x'))).value();
  REQUIRE(std::count(file->bytes().begin(), file->bytes().end(), std::byte{'x'}) == static_cast<std::ptrdiff_t>(size));
  const std::size_t before = resident_file_bytes();
  file->release(0, size);
  const std::size_t after = resident_file_bytes();
  CHECK(before - after > size / 2);
  CHECK(file->bytes()[size - 1] == std::byte{'x'});
}
#endif
