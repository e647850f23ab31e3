// Every way a GGUF file can be wrong is an error that says so, from an addressable source and through a callback.
#include <limits>
#include <string>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "io/raw.hpp"
#include "support/catch.hpp"

namespace fw = flywheel;
namespace io = flywheel::io;
using fw::errc;
using fw::test::counting_reader;
using fw::test::raw;

namespace {

constexpr std::uint32_t f32 = 0;
constexpr std::uint32_t q4_0 = 2;
constexpr std::uint64_t huge = std::uint64_t{1} << 60;

/// A whole file with one tensor `t`, described and followed by 4096 bytes of data.
raw with_tensor(const std::vector<std::uint64_t>& dims, std::uint32_t type, std::uint64_t offset = 0) {
  raw r;
  return r.gguf(1, 0).tensor("t", dims, type, offset).pad(32).zeros(4096);
}

/// A file with one key and its value as given; room behind it, so that only the value itself can be at fault.
raw with_value(const raw& value) {
  raw r;
  return r.gguf(0, 1).text("k").append(value).zeros(64);
}

struct fault {
  std::string what;  ///< Part of the expected message.
  raw file;
  errc code = errc::malformed;
};

std::vector<fault> faults() {
  std::vector<fault> list;
  const auto add = [&](std::string what, const raw& file, errc code = errc::malformed) {
    list.push_back({std::move(what), file, code});
  };

  add("empty", raw());
  add("neither", raw().plain("GGU"));
  add("neither", raw().plain("PK\x03\x04 something else"));
  add("older than GGUF", raw().plain("GGML").zeros(60));
  add("ends inside the version", raw().plain("GGUF").u16(3));
  add("version 1 is not supported", raw().gguf(0, 0, 1), errc::unsupported);
  add("version 4 is not supported", raw().gguf(0, 0, 4), errc::unsupported);
  add("version 0 is not supported", raw().gguf(0, 0, 0), errc::unsupported);
  add("big-endian", raw().gguf(0, 0, 0x03000000), errc::unsupported);
  add("ends inside the tensor count", raw().plain("GGUF").u32(3).u32(0));
  add("ends inside the key count", raw().plain("GGUF").u32(3).u64(0).u32(0));
  add("cannot hold the -1 tensors", raw().gguf(~0ULL, 0));
  add("cannot hold the -1 keys", raw().gguf(0, ~0ULL));
  add("cannot hold the 1152921504606846976 tensors", raw().gguf(huge, 0).zeros(100));
  add("cannot hold the 1152921504606846976 keys", raw().gguf(0, huge).zeros(100));
  add("cannot hold the 4 keys", raw().gguf(0, 4).zeros(55));
  add("more than 65536 keys", raw().gguf(0, 65537).zeros(14 * 65537), errc::unsupported);

  // Keys.
  add("the length of a key", raw().gguf(0, 1).u64(huge).zeros(20));
  add("the length of a key", raw().gguf(0, 1).u64(~0ULL).zeros(20));
  add("the name is empty", raw().gguf(0, 1).text("").u32(4).u32(1).zeros(20));
  add("longer than 65535", raw().gguf(0, 1).text(std::string(65536, 'k')).u32(4).u32(1));
  add("not valid UTF-8", raw().gguf(0, 1).text("k\xFF").u32(4).u32(1));
  add("not valid UTF-8", raw().gguf(0, 1).text("\xC0\x80").u32(4).u32(1));      // overlong
  add("not valid UTF-8", raw().gguf(0, 1).text("\xED\xA0\x80").u32(4).u32(1));  // surrogate
  add("not valid UTF-8", raw().gguf(0, 1).text("\xF4\x90\x80\x80").u32(4));     // beyond U+10FFFF
  add("not valid UTF-8", raw().gguf(0, 1).text("\xE2\x82").u32(4).u32(1));      // cut off
  add("appears twice", raw().gguf(0, 2).key_u32("a", 1).key_u32("a", 1));
  add("ends inside a value type", raw().gguf(0, 1).text("kkkk").u16(0));
  add("ends inside a value", raw().gguf(0, 1).text("k").u32(10).u8(0));

  // Values.
  add("value type 13 does not exist", with_value(raw().u32(13)));
  add("value type 4294967295 does not exist", with_value(raw().u32(0xFFFFFFFF)));
  add("value type 14 does not exist", with_value(raw().u32(9).u32(14).u64(0)));
  add("neither 0 nor 1", with_value(raw().u32(7).u8(2)));
  add("neither 0 nor 1", with_value(raw().u32(9).u32(7).u64(2).u8(1).u8(255)));
  add("the length of a value", with_value(raw().u32(8).u64(huge)));
  add("the length of a value", with_value(raw().u32(8).u64(65)));
  add("arrays of arrays", with_value(raw().u32(9).u32(9).u64(1)), errc::unsupported);
  add("ends inside an array header", raw().gguf(0, 1).text("k").u32(9).u8(0));
  for (const std::uint32_t type : {0U, 1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U, 10U, 11U, 12U})
    for (const std::uint64_t count :
         {huge, ~std::uint64_t{0}, std::uint64_t{1} << 61, std::uint64_t{1} << 62, std::uint64_t{65}})
      add("array", with_value(raw().u32(9).u32(type).u64(count)));
  add("the length of an array", with_value(raw().u32(9).u32(8).u64(2).text("a").u64(huge)));
  raw deep;
  deep.gguf(0, 1).text("k").u32(9);
  for (int i = 0; i < 1200; ++i) deep.u32(9).u64(1);
  add("arrays of arrays", deep, errc::unsupported);

  // Keys the reader itself uses.
  add("must be a string but is u32", raw().gguf(0, 1).key_u32("general.architecture", 1));
  add("not valid UTF-8", raw().gguf(0, 1).key_text("general.architecture", "ll\xFFma"));
  add("not valid UTF-8", raw().gguf(0, 1).key_text("tokenizer.ggml.model", "\xFF"));
  add("must be u32 but is string", raw().gguf(0, 1).key_text("general.alignment", "32"));
  for (const std::uint32_t alignment : {0U, 1U, 4U, 7U, 24U, 33U, 0x80000000U, 0xFFFFFFFFU})
    add("not a power of two", raw().gguf(0, 1).key_u32("general.alignment", alignment));

  // Tensors.
  add("the length of a tensor name", raw().gguf(1, 0).u64(huge).zeros(64));
  add("the name is empty", raw().gguf(1, 0).tensor("", {1}, f32, 0).zeros(64));
  add("not valid UTF-8", raw().gguf(1, 0).tensor("\xFE", {1}, f32, 0).zeros(64));
  add("two tensors", raw().gguf(2, 0).tensor("t", {1}, f32, 0).tensor("t", {1}, f32, 32).pad(32).zeros(64));
  add("1 to 4 dimensions, not 0", with_tensor({}, f32));
  add("1 to 4 dimensions, not 5", with_tensor({1, 1, 1, 1, 1}, f32));
  add("1 to 4 dimensions, not 4294967295", raw().gguf(1, 0).text("t").u32(~0U).zeros(64));
  add("a dimension of 0 is not positive", with_tensor({4, 0}, f32));
  add("a dimension of -1 is not positive", with_tensor({~0ULL}, f32));
  add("is not positive", with_tensor({1ULL << 63, 2}, f32));
  add("exceeds 63 bits", with_tensor({1ULL << 32, 1ULL << 32}, f32));           // wraps to 0
  add("exceeds 63 bits", with_tensor({(1ULL << 32) + 1, 1ULL << 32, 8}, f32));  // wraps to something small
  add("exceeds 63 bits", with_tensor({1ULL << 62, 2}, f32));
  add("the size in bytes exceeds 63 bits", with_tensor({1ULL << 61}, f32));
  add("not whole blocks of Q4_0", with_tensor({33}, q4_0));
  add("not whole blocks of Q4_0", with_tensor({16, 2}, q4_0));
  add("not whole blocks of Q4_K", with_tensor({128}, 12));
  for (const std::uint32_t type : {4U, 5U, 31U, 32U, 33U, 36U, 37U, 38U})
    add("was removed", with_tensor({256}, type), errc::unsupported);
  for (const std::uint32_t type : {1000U, 1001U, 1007U, 0x7FFFFFFFU, 0xFFFFFFFFU})
    add("does not exist", with_tensor({256}, type));
  add("ends inside a tensor's dimensions", raw().gguf(1, 0).text("tttttttttttttttttttttttttt").u32(1).u32(0));
  add("ends inside a tensor's offset", raw().gguf(1, 0).text("t").u32(2).u64(1).u64(1).u32(0).u32(0));
  add("not a multiple of 32", with_tensor({1}, f32, 4));
  add("beyond the end", with_tensor({1}, f32, 4128));
  add("beyond the end", with_tensor({1}, f32, 1ULL << 62));
  add("beyond the end", with_tensor({1}, f32, ~0ULL << 5));
  add("reach beyond the end", with_tensor({1025}, f32));
  add("reach beyond the end", with_tensor({1}, f32, 4096));
  add("reach beyond the end", with_tensor({1ULL << 60}, f32));
  const auto two = [](std::uint64_t first, std::uint64_t second, std::uint32_t type = f32) {
    return raw().gguf(2, 0).tensor("a", {16}, type, first).tensor("b", {16}, type, second).pad(32).zeros(256);
  };
  add("overlap those of tensor 'b'", two(0, 32));
  add("overlap those of tensor 'a'", two(32, 0));
  add("overlap those of tensor 'b'", two(64, 64));
  add("overlap", two(64, 64, 500));  // types that are not known
  add("cannot hold the 2 tensors", raw().gguf(2, 0).tensor("t", {1}, f32, 0));

  // A split model can only be opened by its path.
  add("open it by its path", raw().gguf(0, 2).key_u16("split.no", 0).key_u16("split.count", 2), errc::unsupported);
  add("does not exist", raw().gguf(0, 2).key_u16("split.no", 2).key_u16("split.count", 2));
  add("the key is missing", raw().gguf(0, 1).key_u16("split.count", 2));
  add("must be an integer", raw().gguf(0, 1).key_text("split.count", "2"));
  add("cannot be split", raw().gguf(0, 1).key_u32("split.count", 100000));
  return list;
}

}  // namespace

TEST_CASE("malformed GGUF is refused", "[io]") {
  for (const fault& f : faults()) {
    INFO("expected: " << f.what);
    counting_reader reader{f.file.bytes()};
    for (const auto& opened : {io::archive::open(f.file.bytes()), io::archive::open(reader.callback())}) {
      REQUIRE_FALSE(opened);
      INFO(opened.error().to_string());
      CHECK(opened.error().code == f.code);
      CHECK(opened.error().message.find(f.what) != std::string::npos);
      CHECK_FALSE(opened.error().where.empty());
      CHECK(opened.error().to_string().find('\n') == std::string::npos);
    }
  }
}

TEST_CASE("every proper beginning of a GGUF file is refused", "[io]") {
  raw file;
  file.gguf(2, 5).key_text("general.architecture", "llama").key_u32("general.alignment", 64);
  file.text("flags").u32(9).u32(7).u64(3).u8(1).u8(0).u8(1);
  file.text("words").u32(9).u32(8).u64(2).text("one").text("");
  file.text("f").u32(9).u32(12).u64(1).u64(0x3FF0000000000000);
  file.tensor("a", {3}, f32, 0).tensor("b", {32, 2}, q4_0, 64).pad(64).zeros(64).zeros(36);
  REQUIRE(io::archive::open(file.bytes()));
  for (std::size_t n = 0; n < file.size(); ++n) {
    const auto opened = io::archive::open(file.bytes().first(n));
    INFO(n);
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == errc::malformed);
  }
}

TEST_CASE("what GGUF allows is read", "[io]") {
  // Version 2, an empty file, gaps between tensors, tensors out of order, bytes after the last one.
  CHECK(io::archive::open(raw().gguf(0, 0, 2).bytes())->version() == 2);
  raw gaps;
  gaps.gguf(3, 1).key_text("general.name", "any \xFF bytes");
  gaps.tensor("late", {4}, f32, 256).tensor("early", {4}, f32, 32).tensor("odd", {7}, 900, 64).pad(32).zeros(1000);
  const auto opened = io::archive::open(gaps.bytes());
  if (!opened) FAIL(opened.error().to_string());
  CHECK(opened->tensors()[0].name == "late");
  CHECK(opened->find("odd")->bytes == 192);  // up to the next tensor
  CHECK(fw::info(opened->find("odd")->type) == nullptr);
  const auto view = opened->view(*opened->find("odd"));
  REQUIRE_FALSE(view);
  CHECK(view.error().code == errc::unsupported);
  CHECK(view.error().message.find("unsupported tensor type 900") != std::string::npos);
  fw::buffer scratch;
  CHECK(opened->bytes(*opened->find("odd"), scratch)->size() == 192);
}

TEST_CASE("descriptions that are not of the archive are refused", "[io]") {
  const raw file = with_tensor({16}, f32);
  const auto opened = io::archive::open(file.bytes());
  REQUIRE(opened);
  fw::buffer scratch;
  std::byte out[64];
  io::tensor_info info = *opened->find("t");
  CHECK(opened->read(info, 0, out));
  CHECK(opened->read(info, 1, out).error().code == errc::invalid_argument);
  CHECK(opened->read(info, ~0ULL, std::span(out).first(1)).error().code == errc::invalid_argument);
  info.dims = {17};
  CHECK(opened->view(info).error().code == errc::invalid_argument);
  info = *opened->find("t");
  info.part = 1;
  CHECK(opened->view(info).error().code == errc::invalid_argument);
  CHECK(opened->bytes(info, scratch).error().code == errc::invalid_argument);
  opened->release(info);
  info = *opened->find("t");
  info.bytes = ~0ULL - 8;
  CHECK(opened->bytes(info, scratch).error().code == errc::invalid_argument);
  CHECK(io::archive().view(info).error().code == errc::invalid_argument);
  CHECK(io::archive().tensors().empty());
  CHECK(io::archive().metadata().entries().empty());
}

TEST_CASE("names in errors are printable", "[io]") {
  const auto opened =
      io::archive::open(raw().gguf(0, 1).text("a\n\x01\x7F" + std::string(200, 'z')).u32(77).zeros(30).bytes());
  REQUIRE_FALSE(opened);
  const std::string text = opened.error().to_string();
  CHECK(text.find("'a\\x0a\\x01\\x7fzzz") != std::string::npos);
  CHECK(text.find("...") != std::string::npos);
  CHECK(text.size() < 200);
}
