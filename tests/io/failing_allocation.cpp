// Wherever memory runs out, opening and writing end with out_of_memory and leave nothing behind. (Leaks: the suite runs
// under AddressSanitizer.)
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "flywheel/io/writer.hpp"
#include "io/raw.hpp"
#include "support/catch.hpp"
#include "support/failing_new.hpp"
#include "support/temp_folder.hpp"

namespace fw = flywheel;
namespace io = flywheel::io;
using fw::errc;
using fw::test::fail_allocations;
using fw::test::raw;

namespace {

/// Runs `f`, which returns a result, with the nth allocation failing, for every n until none fails; `after` runs each
/// time. With `once` a single allocation fails, and code that can do without it may succeed.
template <class F, class After>
void fail_each(F f, After after) {
  for (const bool once : {false, true})
    for (std::uint64_t n = 0;; ++n) {
      bool failed = false;
      bool success = false;
      errc code = errc::internal;
      {
        const fail_allocations injected(n, once);
        const auto outcome = f();
        failed = injected.failed();
        success = outcome.has_value();
        if (!success) code = outcome.error().code;
      }
      INFO("allocation " << n << (once ? " alone" : " and all later ones"));
      after(success);
      if (!failed) {
        REQUIRE(success);
        REQUIRE(n > 3);  // the code under test does allocate
        break;
      }
      if (!once) REQUIRE_FALSE(success);
      if (!success) REQUIRE(code == errc::out_of_memory);
      REQUIRE(n < 10000);
    }
}

const auto nothing = [](bool) {};

raw small_gguf() {
  raw r;
  r.gguf(2, 4).key_text("general.architecture", "an architecture with a long name");
  r.text("words").u32(9).u32(8).u64(3).text("one").text(std::string(50, 'x')).text("");
  r.text("numbers").u32(9).u32(4).u64(3).u32(1).u32(2).u32(3);
  r.text("flags").u32(9).u32(7).u64(2).u8(1).u8(0);
  return r.tensor("a tensor with a long name", {4}, 0, 32)
      .tensor("another tensor with a long name", {4}, 0, 0)
      .pad(32)
      .zeros(64);
}

}  // namespace

TEST_CASE("out of memory while opening", "[io]") {
  const fw::test::temp_folder folder;
  const raw gguf = small_gguf();
  const raw st = fw::test::raw_safetensors(
      R"({"__metadata__":{"format":"a text that is not short"},"a tensor with a long name":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
      8);
  gguf.save(folder / "m.gguf");
  st.save(folder / "m.safetensors");
  raw()
      .plain(R"({"weight_map":{"a tensor with a long name":"m.safetensors"}})")
      .save(folder / "m.safetensors.index.json");
  for (const std::uint16_t i : {0, 1})
    raw()
        .gguf(0, 2)
        .key_u16("split.no", i)
        .key_u16("split.count", 2)
        .save(folder / (i == 0 ? "s-00001-of-00002.gguf" : "s-00002-of-00002.gguf"));
  for (const char* name : {"m.gguf", "m.safetensors", "m.safetensors.index.json", "s-00001-of-00002.gguf"}) {
    const std::filesystem::path path = folder / name;
    fail_each([&] { return io::archive::open(path); }, nothing);
  }
  fail_each([&] { return io::archive::open(gguf.bytes()); }, nothing);
  fail_each([&] { return io::archive::open(st.bytes()); }, nothing);
  fw::test::counting_reader reader{gguf.bytes()};
  fail_each([&] { return io::archive::open(reader.callback()); }, nothing);
}

TEST_CASE("out of memory while an error is described", "[io]") {
  // The file is malformed as well: either error is right, and nothing else.
  const raw file = raw().gguf(1, 0).tensor("a tensor with a long name", {4}, 0, 1ULL << 40).zeros(64);
  for (std::uint64_t n = 0;; ++n) {
    const fail_allocations injected(n);
    const auto opened = io::archive::open(file.bytes());
    const bool failed = injected.failed();
    if (opened.has_value()) FAIL("opened");
    if (!failed) break;
    if (opened.error().code != errc::out_of_memory) FAIL("another error");
  }
}

TEST_CASE("out of memory while reading tensors", "[io]") {
  const raw file = small_gguf();
  fw::test::counting_reader reader{file.bytes()};
  const auto opened = io::archive::open(reader.callback());
  REQUIRE(opened);
  const io::tensor_info& tensor = opened->tensors()[0];
  for (std::uint64_t n = 0;; ++n) {
    fw::buffer scratch;
    const fail_allocations injected(n);
    const auto bytes = opened->bytes(tensor, scratch);
    if (!injected.failed()) {
      CHECK(bytes);
      break;
    }
    if (bytes || bytes.error().code != errc::out_of_memory) FAIL("no error");
  }
}

TEST_CASE("out of memory while writing", "[io]") {
  const fw::test::temp_folder folder;
  const auto path = folder / "model with a long name.gguf";
  io::metadata meta;
  meta.set("general.architecture", std::string("an architecture with a long name"));
  meta.set("words", std::vector<std::string>{"one", "two"});
  const std::vector<io::tensor_plan> plans = {{"a tensor with a long name", fw::dtype::f32, {4}, 0}};
  const std::vector<std::byte> data(16);
  for (const auto kind : {io::container::gguf, io::container::safetensors}) {
    const auto write = [&]() -> fw::result<void> {
      auto writer = io::writer::create(path, kind, meta, plans);
      if (!writer) return writer.error();
      if (auto done = writer->write(data); !done) return done;
      return writer->finish();
    };
    fail_each(write, [&](bool success) {
      REQUIRE(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == (success ? 1 : 0));
      std::filesystem::remove(path);
    });
  }
}
