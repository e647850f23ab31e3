// What a writer wrote, the reader gives back: every value type, every dtype, both containers, from all three sources.
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>

#include "flywheel/io/archive.hpp"
#include "flywheel/io/writer.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"

namespace fw = flywheel;
namespace io = flywheel::io;

namespace {

io::metadata all_value_types() {
  io::metadata m;
  m.set("general.architecture", std::string("llama"));
  m.set("u8", std::uint8_t{200});
  m.set("i8", std::int8_t{-100});
  m.set("u16", std::uint16_t{60000});
  m.set("i16", std::int16_t{-30000});
  m.set("u32", std::uint32_t{4000000000U});
  m.set("i32", std::int32_t{-2000000000});
  m.set("f32", 1.5F);
  m.set("bool", true);
  m.set("string", std::string("h\xC3\xA9llo\0\n", 8));
  m.set("u64", std::numeric_limits<std::uint64_t>::max());
  m.set("i64", std::numeric_limits<std::int64_t>::min());
  m.set("f64", 0.1);
  m.set("u8s", std::vector<std::uint8_t>{1, 2, 255});
  m.set("i8s", std::vector<std::int8_t>{-1, 127});
  m.set("u16s", std::vector<std::uint16_t>{1, 65535});
  m.set("i16s", std::vector<std::int16_t>{-32768, 1});
  m.set("u32s", std::vector<std::uint32_t>{0, 4294967295U});
  m.set("i32s", std::vector<std::int32_t>{-5, 6});
  m.set("f32s", std::vector<float>{-0.0F, std::numeric_limits<float>::infinity()});
  m.set("bools", std::vector<bool>{true, false, true});
  m.set("strings", std::vector<std::string>{"", "a", std::string(100, 'x'), "\xFF\xFE"});
  m.set("u64s", std::vector<std::uint64_t>{1ULL << 63});
  m.set("i64s", std::vector<std::int64_t>{-1});
  m.set("f64s", std::vector<double>{1e300});
  m.set("empty", std::vector<std::string>{});
  m.set("empty numbers", std::vector<std::int32_t>{});
  return m;
}

void check_equal(const io::metadata& a, const io::metadata& b) {
  REQUIRE(a.entries().size() == b.entries().size());
  for (std::size_t i = 0; i < a.entries().size(); ++i) {
    INFO(a.entries()[i].key);
    CHECK(a.entries()[i].key == b.entries()[i].key);
    CHECK(a.entries()[i].value == b.entries()[i].value);
  }
}

/// Bytes that differ from tensor to tensor.
std::vector<std::byte> pattern(std::size_t n, std::size_t seed) {
  std::vector<std::byte> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::byte>((i * 7 + seed * 31 + i / 251) & 255);
  return out;
}

std::vector<std::byte> slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

bool read_vector(void* user, std::uint64_t offset, std::byte* out, std::size_t n) {
  const auto& bytes = *static_cast<const std::vector<std::byte>*>(user);
  std::memcpy(out, bytes.data() + offset, n);
  return true;
}

/// Writes `plans` with pattern data and checks that all three ways of opening the file give everything back.
void check_round_trip(io::container kind, const io::metadata& meta, std::vector<io::tensor_plan> plans,
                      std::size_t piece) {
  const fw::test::temp_folder folder;
  const auto path = folder / "model";
  auto writer = io::writer::create(path, kind, meta, plans);
  if (!writer) FAIL(writer.error().to_string());
  std::vector<std::vector<std::byte>> data;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const auto known = fw::dense_bytes(plans[i].type, plans[i].dims);
    data.push_back(pattern(known ? *known : plans[i].bytes, i));
    for (std::size_t at = 0; at < data[i].size(); at += piece)
      REQUIRE(writer->write(std::span(data[i]).subspan(at, std::min(piece, data[i].size() - at))));
  }
  CHECK_FALSE(std::filesystem::exists(path));
  const auto done = writer->finish();
  if (!done) FAIL(done.error().to_string());
  // Nothing but the file itself.
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);

  std::vector<std::byte> bytes = slurp(path);
  const io::reader_callback reader{bytes.size(), &bytes, read_vector};
  for (const auto& opened :
       {io::archive::open(path), io::archive::open(std::span<const std::byte>(bytes)), io::archive::open(reader)}) {
    if (!opened) FAIL(opened.error().to_string());
    CHECK(opened->container() == kind);
    CHECK(opened->file_bytes() == bytes.size());
    CHECK(opened->parts() == 1);
    if (kind == io::container::gguf) {
      CHECK(opened->version() == 3);
      check_equal(opened->metadata(), meta);
    }
    REQUIRE(opened->tensors().size() == plans.size());
    for (std::size_t i = 0; i < plans.size(); ++i) {
      INFO(plans[i].name);
      const io::tensor_info* tensor = opened->find(plans[i].name);
      REQUIRE(tensor != nullptr);
      CHECK(tensor->name == opened->tensors()[i].name);
      CHECK(tensor->type == plans[i].type);
      CHECK(tensor->dims == plans[i].dims);
      fw::buffer scratch;
      const auto stored = opened->bytes(*tensor, scratch);
      REQUIRE(stored);
      REQUIRE(stored->size() >= data[i].size());  // opaque tensors include their padding
      CHECK(std::equal(data[i].begin(), data[i].end(), stored->begin()));
      if (fw::info(plans[i].type) != nullptr) {
        CHECK(stored->size() == data[i].size());
        if (const auto view = opened->view(*tensor)) {
          CHECK(view->dims == plans[i].dims);
          CHECK(std::equal(data[i].begin(), data[i].end(), view->data));
        }
      }
      if (data[i].size() > 2) {
        std::byte two[2];
        REQUIRE(opened->read(*tensor, 1, two));
        CHECK(two[1] == data[i][2]);
      }
      opened->release(*tensor);
    }
    CHECK(opened->find("no such tensor") == nullptr);
  }
}

}  // namespace

TEST_CASE("every GGUF value type survives a round trip", "[io]") {
  check_round_trip(io::container::gguf, all_value_types(), {}, 1);
}

TEST_CASE("every dtype survives a GGUF round trip", "[io]") {
  std::vector<io::tensor_plan> plans;
  for (const fw::dtype_info& facts : fw::dtype_table)
    if (static_cast<std::uint32_t>(facts.type) < 1000)
      plans.push_back({"t." + std::string(facts.name), facts.type, {2, 3, facts.block_elements * 2}, 0});
  REQUIRE(plans.size() > 30);
  plans.push_back({"vector", fw::dtype::f32, {5}, 0});
  plans.push_back({"four", fw::dtype::i8, {2, 1, 3, 7}, 0});
  for (const std::size_t piece : {std::size_t{7}, std::size_t{1} << 20})
    check_round_trip(io::container::gguf, all_value_types(), plans, piece);
}

TEST_CASE("the alignment of the metadata is kept", "[io]") {
  for (const std::uint32_t alignment : {8U, 32U, 256U, 4096U}) {
    io::metadata meta;
    meta.set("general.alignment", alignment);
    check_round_trip(io::container::gguf, meta,
                     {{"a", fw::dtype::i8, {3}, 0}, {"b", fw::dtype::q8_0, {1, 32}, 0}, {"c", fw::dtype::f32, {1}, 0}},
                     1000);
  }
}

TEST_CASE("a type that is not known is copied as it is", "[io]") {
  const auto odd = static_cast<fw::dtype>(777);
  check_round_trip(io::container::gguf, {},
                   {{"odd", odd, {4, 100}, 131}, {"f", fw::dtype::f32, {3}, 0}, {"last", odd, {1}, 5}}, 64);
}

TEST_CASE("every dtype survives a safetensors round trip", "[io]") {
  io::metadata meta;
  meta.set("format", std::string("pt"));
  meta.set("quoted \"key\"", std::string("line\nbreak \xE2\x82\xAC"));
  std::vector<io::tensor_plan> plans;
  for (const fw::dtype type :
       {fw::dtype::f64, fw::dtype::i64, fw::dtype::u64, fw::dtype::f32, fw::dtype::i32, fw::dtype::u32, fw::dtype::f16,
        fw::dtype::bf16, fw::dtype::i16, fw::dtype::u16, fw::dtype::i8, fw::dtype::u8, fw::dtype::boolean,
        fw::dtype::f8_e4m3, fw::dtype::f8_e5m2})
    plans.push_back({"t \"" + std::string(fw::to_string(type)) + "\"", type, {2, 1, 3}, 0});
  plans.push_back({"scalar", fw::dtype::f32, {}, 0});  // not aligned in the file
  plans.push_back({"nothing", fw::dtype::f32, {3, 0}, 0});
  plans.push_back({"last", fw::dtype::u8, {9}, 0});
  for (const std::size_t piece : {std::size_t{5}, std::size_t{1} << 20})
    check_round_trip(io::container::safetensors, meta, plans, piece);

  // Only text is kept of the metadata.
  const fw::test::temp_folder folder;
  meta.set("number", 5);
  auto writer = io::writer::create(folder / "m.safetensors", io::container::safetensors, meta, {});
  REQUIRE(writer);
  REQUIRE(writer->finish());
  const auto opened = io::archive::open(folder / "m.safetensors");
  REQUIRE(opened);
  meta.erase("number");
  check_equal(opened->metadata(), meta);
}

TEST_CASE("tensors larger than the writer's buffer", "[io]") {
  check_round_trip(io::container::gguf, {}, {{"big", fw::dtype::f32, {300, 1024}, 0}, {"small", fw::dtype::i8, {1}, 0}},
                   700001);
}

TEST_CASE("a tensor that is not aligned for its type is copied, not viewed", "[io]") {
  const fw::test::temp_folder folder;
  const std::vector<io::tensor_plan> plans = {{"a", fw::dtype::u8, {1}, 0}, {"b", fw::dtype::f32, {1}, 0}};
  auto writer = io::writer::create(folder / "m.safetensors", io::container::safetensors, {}, plans);
  REQUIRE(writer);
  REQUIRE(writer->write(pattern(1, 0)));
  REQUIRE(writer->write(pattern(4, 1)));
  REQUIRE(writer->finish());
  const auto opened = io::archive::open(folder / "m.safetensors");
  REQUIRE(opened);
  CHECK(opened->view(*opened->find("a")));
  const auto view = opened->view(*opened->find("b"));
  REQUIRE_FALSE(view);
  CHECK(view.error().code == fw::errc::unsupported);
  fw::buffer scratch;
  const auto bytes = opened->bytes(*opened->find("b"), scratch);
  REQUIRE(bytes);
  CHECK(bytes->data() == scratch.data());
}
