// Sources: a host's reader that fails at any call, and what opening costs.
#include <string>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "io/raw.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"

namespace fw = flywheel;
namespace io = flywheel::io;
using fw::errc;
using fw::test::counting_reader;
using fw::test::raw;

namespace {

/// Metadata of a few windows' length and a tensor of 8 MiB.
raw large_gguf() {
  raw r;
  r.gguf(1, 3).key_text("general.architecture", std::string("llama"));
  r.text("words").u32(9).u32(8).u64(20000);
  for (int i = 0; i < 20000; ++i) r.text("word " + std::to_string(i));
  r.text("numbers").u32(9).u32(4).u64(100000);
  for (std::uint32_t i = 0; i < 100000; ++i) r.u32(i);
  r.tensor("t", {8 << 20}, 24, 0).pad(32).zeros(8 << 20);
  return r;
}

void check_failing_reader(const raw& file, const std::string& tensor) {
  counting_reader counting{file.bytes()};
  REQUIRE(io::archive::open(counting.callback()));
  const std::size_t calls = counting.calls;
  REQUIRE(calls >= 2);
  for (std::size_t n = 0; n < calls; ++n) {
    counting_reader failing{file.bytes()};
    failing.fail_at = n;
    const auto opened = io::archive::open(failing.callback());
    INFO(n);
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == errc::io);
    CHECK(opened.error().message.find("callback failed") != std::string::npos);
  }
  // Failing after the archive is open.
  counting_reader later{file.bytes()};
  later.fail_at = calls;
  const auto opened = io::archive::open(later.callback());
  REQUIRE(opened);
  fw::buffer scratch;
  const auto bytes = opened->bytes(*opened->find(tensor), scratch);
  REQUIRE_FALSE(bytes);
  CHECK(bytes.error().code == errc::io);
  CHECK(bytes.error().where.find(tensor) != std::string::npos);
  CHECK(opened->bytes(*opened->find(tensor), scratch));  // the next call works again
  const auto view = opened->view(*opened->find(tensor));
  REQUIRE_FALSE(view);
  CHECK(view.error().code == errc::unsupported);
}

}  // namespace

TEST_CASE("a reader callback may fail at any call", "[io]") {
  check_failing_reader(large_gguf(), "t");
  check_failing_reader(fw::test::raw_safetensors(R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2), "t");
}

TEST_CASE("opening through a callback reads the header and little more, in few calls", "[io]") {
  const raw file = large_gguf();
  counting_reader reader{file.bytes()};
  const auto opened = io::archive::open(reader.callback());
  REQUIRE(opened);
  CHECK(reader.read_bytes < file.size() - (8 << 20) + (70 << 10));
  CHECK(reader.calls < 30);
  CHECK(opened->metadata().strings("words")->back() == "word 19999");
  CHECK(opened->metadata().integers("numbers")->back() == 99999);
}

TEST_CASE("sources that cannot be opened", "[io]") {
  const fw::test::temp_folder folder;
  CHECK(io::archive::open(folder / "missing.gguf").error().code == errc::not_found);
  CHECK(io::archive::open(folder / "missing.gguf").error().where.find("missing.gguf") != std::string::npos);
  CHECK_FALSE(io::archive::open(folder.path()));
  CHECK(io::archive::open(io::reader_callback{}).error().code == errc::invalid_argument);
  CHECK(io::archive::open(std::span<const std::byte>()).error().code == errc::malformed);
}

TEST_CASE("the host's memory need not be aligned", "[io]") {
  raw file;
  file.gguf(1, 0).tensor("t", {2}, 0, 0).pad(32).u32(0x3F800000).u32(0x40000000);
  for (std::size_t shift = 0; shift < 8; ++shift) {
    std::vector<std::byte> shifted(shift);
    shifted.insert(shifted.end(), file.bytes().begin(), file.bytes().end());
    const auto opened = io::archive::open(std::span<const std::byte>(shifted).subspan(shift));
    REQUIRE(opened);
    CHECK(opened->view(*opened->find("t")).has_value() == (shift % 4 == 0));
    fw::buffer scratch;
    const auto bytes = opened->bytes(*opened->find("t"), scratch);
    REQUIRE(bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(bytes->data()) % 4 == 0);
    CHECK(std::equal(bytes->begin(), bytes->end(), file.bytes().end() - 8));
  }
}
