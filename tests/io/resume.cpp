// Files that an interrupted writer leaves to go on with.
#include <atomic>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#  include <sys/stat.h>
#endif

#include "flywheel/io/writer.hpp"
#include "src/io/output_file.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;

struct plan {
  io::metadata meta;
  std::vector<io::tensor_plan> tensors = {
      {"a", dtype::f32, {3, 5}, 0}, {"b", dtype::q8_0, {2, 32}, 0}, {"c", dtype::f16, {7}, 0}};
  plan() {
    meta.set("general.architecture", std::string("none"));
    meta.set("test.flags", std::vector<bool>{true, false, true});
    meta.set("test.words", std::vector<std::string>{"one", "", "three"});
    meta.set("test.numbers", std::vector<double>{1, 2});
    meta.set("test.small", std::int8_t{-1});
  }
  [[nodiscard]] std::vector<std::byte> bytes(std::size_t i) const {
    return std::vector<std::byte>(dense_bytes(tensors[i].type, tensors[i].dims).value(), static_cast<std::byte>(i + 1));
  }
  [[nodiscard]] io::writer open(const std::filesystem::path& path, const char* key = "key") const {
    return std::move(io::writer::resume(path, io::container::gguf, meta, tensors, key)).value();
  }
};

std::string text_in(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST_CASE("Tensors of an interrupted file are kept, in whatever order they came") {
  const temp_folder folder;
  const plan p;
  const std::filesystem::path path = folder / "x.gguf";
  {
    io::writer whole =
        std::move(io::writer::create(folder / "whole.gguf", io::container::gguf, p.meta, p.tensors)).value();
    for (std::size_t i = 0; i < 3; ++i) whole.write(p.bytes(i)).value();
    whole.finish().value();
  }
  {
    io::writer first = p.open(path);
    CHECK(io::writer::resume(path, io::container::gguf, p.meta, p.tensors, "key").error().code == errc::io);  // locked
    first.select(2).value();
    first.write(p.bytes(2)).value();
    first.select(0).value();
    const std::vector<std::byte> a = p.bytes(0);
    first.write(std::span(a).first(10)).value();
    CHECK(first.complete(2));
    CHECK_FALSE(first.complete(0));
    const io::archive so_far = io::archive::open(first.partial().value()).value();
    buffer scratch;
    const auto c = so_far.bytes(*so_far.find("c"), scratch).value();
    CHECK(std::vector<std::byte>(c.begin(), c.end()) == p.bytes(2));
    CHECK(first.finish().error().code == errc::invalid_argument);
  }
  {
    io::writer other = p.open(path, "another key");
    CHECK_FALSE(other.complete(2));
    other.select(2).value();
    other.write(p.bytes(2)).value();
  }
  {
    io::writer again = p.open(path, "another key");
    CHECK(again.complete(2));
    again.select(0).value();
    again.write(p.bytes(0)).value();
    again.write(p.bytes(1)).value();  // the next that is not there
    again.finish().value();
  }
  CHECK(read_bytes(path) == read_bytes(folder / "whole.gguf"));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 2);
}

TEST_CASE("A writer that is given up leaves nothing") {
  const temp_folder folder;
  const plan p;
  io::writer given_up = p.open(folder / "x.gguf");
  given_up.write(p.bytes(0)).value();
  given_up.abandon();
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("Files that are no earlier run's are left alone") {
  const temp_folder folder;
  const plan p;
  const std::filesystem::path path = folder / "x.gguf", partial = folder / "x.gguf.partial",
                              journal = folder / "x.gguf.partial.journal", other = folder / "other";
  std::ofstream(other) << "precious";
  const auto refused = [&](const std::filesystem::path& where) {
    const auto opened = io::writer::resume(path, io::container::gguf, p.meta, p.tensors, "key");
    REQUIRE(!opened);
    INFO(opened.error().to_string());
    CHECK(opened.error().code == errc::invalid_argument);
    CHECK(opened.error().where == where.string());
    CHECK(opened.error().message.find("choose another name") != std::string::npos);
    CHECK(text_in(other) == "precious");
  };
  SECTION("a file without a journal") {
    std::filesystem::rename(other, partial);
    std::filesystem::create_hard_link(partial, other);
    refused(partial);
    CHECK(text_in(partial) == "precious");
    std::ofstream(journal).close();
    refused(partial);
  }
  SECTION("a journal of something else") {
    std::filesystem::rename(other, journal);
    std::filesystem::create_hard_link(journal, other);
    refused(journal);
    CHECK_FALSE(std::filesystem::exists(partial));
  }
  SECTION("links") {
    std::filesystem::create_symlink(other, partial);
    refused(partial);
    std::filesystem::remove(partial);
    std::filesystem::create_symlink(folder / "nothing", partial);
    refused(partial);
    std::filesystem::remove(partial);
    std::filesystem::create_symlink(other, journal);
    refused(journal);
    CHECK_FALSE(std::filesystem::exists(partial));
  }
#if !defined(_WIN32)
  SECTION("a pipe") {
    REQUIRE(::mkfifo(partial.c_str(), 0666) == 0);
    refused(partial);
  }
#endif
}

TEST_CASE("A writer that cannot begin leaves nothing, but keeps what was there") {
  const temp_folder folder;
  const plan p;
  const auto begin = [&] {
    return io::writer::resume(folder / "x.gguf", io::container::safetensors, p.meta, p.tensors, "key").error().code;
  };
  CHECK(begin() == errc::unsupported);  // safetensors has no Q8_0
  CHECK(std::filesystem::is_empty(folder.path()));
  {
    io::writer first = p.open(folder / "x.gguf");
    first.write(p.bytes(0)).value();
  }
  CHECK(begin() == errc::unsupported);
  CHECK(p.open(folder / "x.gguf").complete(0));
}

TEST_CASE("A complete file that cannot get its name stays to go on with") {
  const temp_folder folder;
  const plan p;
  const std::filesystem::path path = folder / "x.gguf";
  {
    io::writer out = p.open(path);
    for (std::size_t i = 0; i < 3; ++i) out.write(p.bytes(i)).value();
    std::filesystem::create_directories(path / "in the way");
    CHECK(out.finish().error().code == errc::io);
  }
  std::filesystem::remove_all(path);
  io::writer again = p.open(path);
  for (std::size_t i = 0; i < 3; ++i) CHECK(again.complete(i));
  again.finish().value();
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("Of writers that come and go at one path, no two are at work at once") {
  const temp_folder folder;
  const plan p;
  const std::filesystem::path path = folder / "x.gguf";
  std::atomic<int> finished{0}, failures{0};
  std::vector<std::thread> writers;
  for (int t = 0; t < 3; ++t)
    writers.emplace_back([&] {
      for (int n = 0; n < 100; ++n) {
        auto out = io::writer::resume(path, io::container::gguf, p.meta, p.tensors, "key");
        if (!out) {
          if (out.error().code != errc::io) ++failures;
          continue;
        }
        for (std::size_t i = 0; i < 3; ++i)
          if (!out->complete(i) && (!out->select(i) || !out->write(p.bytes(i)))) ++failures;
        if (out->finish())
          ++finished;
        else
          ++failures;
      }
    });
  for (std::thread& t : writers) t.join();
  CHECK(failures == 0);
  CHECK(finished > 0);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("Holes of a file take no room") {
  const temp_folder folder;
  std::ofstream(folder / "x") << "x";
  std::filesystem::resize_file(folder / "x", 64 << 20);
  CHECK(io::detail::occupied_bytes(folder / "x") < (1 << 20));
  CHECK(io::detail::occupied_bytes(folder / "none") == 0);
  std::ofstream(folder / "y") << std::string(1 << 20, 'y') << std::flush;
  CHECK(io::detail::occupied_bytes(folder / "y") >= (1 << 20));
}

TEST_CASE("The header's length is known beforehand") {
  const temp_folder folder;
  const plan p;
  io::writer out = std::move(io::writer::create(folder / "x.gguf", io::container::gguf, p.meta, p.tensors)).value();
  for (std::size_t i = 0; i < 3; ++i) out.write(p.bytes(i)).value();
  out.finish().value();
  const io::archive file = io::archive::open(folder / "x.gguf").value();
  CHECK(io::gguf_header_bytes(p.meta, file.tensors()) == file.find("a")->offset);
}

}  // namespace
