// What a writer refuses, and that it leaves nothing behind.
#include "flywheel/io/writer.hpp"

#include <csignal>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#if __has_include(<sys/resource.h>)
#  include <sys/resource.h>
#endif

#include "flywheel/io/archive.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"

namespace fw = flywheel;
namespace io = flywheel::io;
using fw::dtype;
using fw::errc;

namespace {

std::ptrdiff_t files_in(const fw::test::temp_folder& folder) {
  return std::distance(std::filesystem::directory_iterator(folder.path()), {});
}

std::string text_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("plans that cannot be written are refused and leave nothing", "[io]") {
  const fw::test::temp_folder folder;
  const auto path = folder / "model";
  const auto fails = [&](io::container kind, errc code, const std::string& what, std::vector<io::tensor_plan> plans,
                         const io::metadata& meta = {}) {
    const auto writer = io::writer::create(path, kind, meta, plans);
    INFO("expected: " << what);
    REQUIRE_FALSE(writer);
    INFO(writer.error().to_string());
    CHECK(writer.error().code == code);
    CHECK(writer.error().message.find(what) != std::string::npos);
    CHECK(writer.error().where.find("model") != std::string::npos);
    CHECK(files_in(folder) == 0);
  };
  const auto gguf = io::container::gguf;
  const auto st = io::container::safetensors;
  for (const auto kind : {gguf, st}) {
    fails(kind, errc::invalid_argument, "two tensors", {{"a", dtype::f32, {1}, 0}, {"a", dtype::f32, {1}, 0}});
    fails(kind, errc::invalid_argument, "name is empty", {{"", dtype::f32, {1}, 0}});
    fails(kind, errc::invalid_argument, "not valid UTF-8", {{"\xFF", dtype::f32, {1}, 0}});
    fails(kind, errc::invalid_argument, "too long", {{std::string(70000, 'x'), dtype::f32, {1}, 0}});
    fails(kind, errc::invalid_argument, "the shape", {{"a", dtype::f32, {-1}, 0}});
    fails(kind, errc::invalid_argument, "the shape",
          {{"a", dtype::f32, {std::int64_t{1} << 40, std::int64_t{1} << 40}, 0}});
    fails(kind, errc::invalid_argument, "the given size", {{"a", dtype::f32, {2}, 4}});
    fails(kind, errc::invalid_argument, "large",
          {{"a", dtype::i8, {std::int64_t{1} << 61}, 0},
           {"b", dtype::i8, {std::int64_t{1} << 61}, 0},
           {"c", dtype::i8, {std::int64_t{1} << 61}, 0}});
  }
  fails(gguf, errc::invalid_argument, "longer than 63", {{std::string(64, 'x'), dtype::f32, {1}, 0}});
  fails(gguf, errc::unsupported, "1 to 4 dimensions", {{"a", dtype::f32, {}, 0}});
  fails(gguf, errc::unsupported, "1 to 4 dimensions", {{"a", dtype::f32, {1, 1, 1, 1, 1}, 0}});
  fails(gguf, errc::invalid_argument, "is empty", {{"a", dtype::f32, {3, 0}, 0}});
  fails(gguf, errc::invalid_argument, "not whole blocks", {{"a", dtype::q4_0, {2, 33}, 0}});
  fails(gguf, errc::unsupported, "no tensor type U8", {{"a", dtype::u8, {1}, 0}});
  fails(gguf, errc::unsupported, "no tensor type", {{"a", static_cast<dtype>(31), {1}, 4}});
  fails(gguf, errc::invalid_argument, "must be given", {{"a", static_cast<dtype>(500), {1}, 0}});
  fails(st, errc::unsupported, "no dtype Q4_0", {{"a", dtype::q4_0, {32}, 0}});
  fails(st, errc::unsupported, "no dtype unknown", {{"a", static_cast<dtype>(500), {1}, 4}});
  fails(st, errc::invalid_argument, "keeps this name", {{"__metadata__", dtype::f32, {1}, 0}});

  io::metadata meta;
  meta.set("general.alignment", std::uint32_t{3});
  fails(gguf, errc::invalid_argument, "power of two", {}, meta);
  meta.set("general.alignment", 32);
  fails(gguf, errc::invalid_argument, "must be u32", {}, meta);
  meta.set("general.alignment", std::uint32_t{32});
  meta.set("general.architecture", std::string("\xFF"));
  fails(gguf, errc::invalid_argument, "UTF-8", {}, meta);
  fails(st, errc::invalid_argument, "UTF-8", {}, meta);
  meta.set("general.architecture", std::string("llama"));
  meta.set("", 1);
  fails(gguf, errc::invalid_argument, "1 to 65535 bytes", {}, meta);
}

TEST_CASE("devices and folders are refused, links are followed", "[io]") {
  const fw::test::temp_folder folder;
  const auto refused = [](const std::filesystem::path& path, const std::string& what) {
    const auto writer = io::writer::create(path, io::container::gguf, {}, {});
    INFO(path.string());
    REQUIRE_FALSE(writer);
    CHECK(writer.error().code == errc::invalid_argument);
    CHECK(writer.error().message.find(what) != std::string::npos);
  };
  refused(folder.path(), "folder");
#if __has_include(<sys/resource.h>)
  std::filesystem::create_symlink("/dev/null", folder / "null");
  refused(folder / "null", "not a regular file");  // not /dev/null itself: a failing test may be run by root
#endif

  std::filesystem::create_directory(folder / "there");
  std::ofstream(folder / "there/model") << "old";
  std::filesystem::create_symlink("there/model", folder / "link");
  auto writer = io::writer::create(folder / "link", io::container::gguf, {}, {});
  REQUIRE(writer);
  REQUIRE(writer->finish());
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(text_of(folder / "there/model").starts_with("GGUF"));
}

TEST_CASE("pieces must fit", "[io]") {
  const fw::test::temp_folder folder;
  const std::vector<io::tensor_plan> plans = {{"a", dtype::i8, {4}, 0}, {"b", dtype::i8, {4}, 0}};
  std::vector<std::byte> bytes(5, std::byte{7});
  {
    auto writer = io::writer::create(folder / "m", io::container::gguf, {}, plans);
    REQUIRE(writer);
    CHECK(writer->write(bytes).error().code == errc::invalid_argument);  // more than `a` takes
    REQUIRE(writer->write(std::span(bytes).first(3)));
    CHECK(writer->write(std::span(bytes).first(2)).error().code == errc::invalid_argument);
    const auto early = writer->finish();
    REQUIRE_FALSE(early);
    CHECK(early.error().message.find("lacks 1 bytes") != std::string::npos);
    CHECK(early.error().where.find("'a'") != std::string::npos);
    // It can go on.
    REQUIRE(writer->write(std::span(bytes).first(1)));
    REQUIRE(writer->write(std::span(bytes).first(4)));
    CHECK(writer->write(std::span(bytes).first(1)).error().code == errc::invalid_argument);
    CHECK(files_in(folder) == 1);
    io::writer moved = *std::move(writer);
    REQUIRE(moved.finish());
    CHECK(moved.finish().error().code == errc::invalid_argument);
    CHECK(moved.write(bytes).error().code == errc::invalid_argument);
    CHECK(writer->finish().error().code == errc::invalid_argument);
  }
  CHECK(files_in(folder) == 1);
  REQUIRE(io::archive::open(folder / "m"));
}

TEST_CASE("an unfinished file disappears, and what was there before stays", "[io]") {
  const fw::test::temp_folder folder;
  std::ofstream(folder / "m") << "before";
  const std::vector<io::tensor_plan> plans = {{"a", dtype::i8, {4}, 0}};
  {
    auto writer = io::writer::create(folder / "m", io::container::gguf, {}, plans);
    REQUIRE(writer);
    CHECK(files_in(folder) == 2);
    auto second = io::writer::create(folder / "m", io::container::gguf, {}, plans);
    REQUIRE(second);
    CHECK(files_in(folder) == 3);
    *writer = *std::move(second);
    CHECK(files_in(folder) == 2);
  }
  CHECK(files_in(folder) == 1);
  CHECK(text_of(folder / "m") == "before");
  auto writer = io::writer::create(folder / "m", io::container::gguf, {}, {});
  REQUIRE(writer);
  REQUIRE(writer->finish());
  CHECK(files_in(folder) == 1);
  CHECK(text_of(folder / "m").substr(0, 4) == "GGUF");
}

TEST_CASE("places that cannot be written", "[io]") {
  const fw::test::temp_folder folder;
  const auto create = [&](const std::filesystem::path& path) {
    return io::writer::create(path, io::container::gguf, {}, {});
  };
  CHECK(create(folder / "no such folder" / "m").error().code == errc::not_found);
  CHECK(create(folder.path()).error().code == errc::invalid_argument);
  CHECK(create("").error().code == errc::invalid_argument);
  std::ofstream(folder / "file") << "x";
  CHECK_FALSE(create(folder / "file" / "m"));
  // Becomes a folder while the file is written: the rename fails.
  auto writer = create(folder / "late");
  REQUIRE(writer);
  std::filesystem::create_directories(folder / "late" / "full");
  const auto done = writer->finish();
  REQUIRE_FALSE(done);
  CHECK(done.error().code == errc::io);
  CHECK(files_in(folder) == 2);
}

#if __has_include(<sys/resource.h>)
TEST_CASE("a full disk is an error and leaves nothing", "[io]") {
  // A limit on file sizes fails write() as a full disk does.
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit small = before;
  small.rlim_cur = 1 << 20;
  if (setrlimit(RLIMIT_FSIZE, &small) != 0) {
    WARN("skipped: the limit on file sizes cannot be set");
    return;
  }
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  const fw::test::temp_folder folder;
  const std::vector<io::tensor_plan> plans = {{"a", dtype::i8, {8 << 20}, 0}};
  auto writer = io::writer::create(folder / "m", io::container::safetensors, {}, plans);
  const std::vector<std::byte> piece(3 << 19);
  bool failed = false;
  errc code{};
  std::ptrdiff_t left = 99;
  if (writer) {
    for (int i = 0; i < 5 && !failed; ++i)
      if (const auto done = writer->write(piece); !done) {
        failed = true;
        code = done.error().code;
        left = files_in(folder);
      }
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  REQUIRE(writer);
  CHECK(failed);
  CHECK(code == errc::io);
  CHECK(left == 0);
  CHECK_FALSE(writer->write(std::span(piece).first(1)));
  CHECK_FALSE(writer->finish());
  CHECK(files_in(folder) == 0);
}
#endif
