// Files that an interrupted writer leaves to go on with.
#include <fstream>

#include "flywheel/io/writer.hpp"
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
