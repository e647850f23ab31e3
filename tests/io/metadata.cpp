#include "flywheel/io/metadata.hpp"

#include <cmath>
#include <limits>

#include "support/catch.hpp"

namespace io = flywheel::io;
using flywheel::errc;

TEST_CASE("metadata keeps order, replaces in place and erases", "[io]") {
  io::metadata m;
  m.set("a", std::uint32_t{1});
  m.set("b", std::string("two"));
  m.set("c", 3.0F);
  m.set("b", std::int8_t{-2});
  REQUIRE(m.entries().size() == 3);
  CHECK(m.entries()[1].key == "b");
  CHECK(*m.integer("b") == -2);
  CHECK(m.erase("a"));
  CHECK_FALSE(m.erase("a"));
  CHECK_FALSE(m.contains("a"));
  CHECK(m.entries()[0].key == "b");
  CHECK(*m.number("c") == 3.0);
  const io::metadata copy = m;
  CHECK(*copy.integer("b") == -2);
}

TEST_CASE("typed access converts integers that fit and names what does not", "[io]") {
  io::metadata m;
  m.set("u8", std::uint8_t{255});
  m.set("i16", std::int16_t{-7});
  m.set("u64", std::uint64_t{1} << 63);
  m.set("fits", std::uint64_t{1} << 62);
  m.set("f32", 0.5F);
  m.set("f64", 0.25);
  m.set("bool", true);
  m.set("string", std::string("text"));
  m.set("u16s", std::vector<std::uint16_t>{1, 2});
  m.set("u64s", std::vector<std::uint64_t>{1, ~std::uint64_t{0}});
  m.set("f32s", std::vector<float>{1, 2});
  m.set("f64s", std::vector<double>{1, 2.5});
  m.set("strings", std::vector<std::string>{"x"});
  m.set("bools", std::vector<bool>{true});

  CHECK(*m.integer("u8") == 255);
  CHECK(*m.integer("i16") == -7);
  CHECK(*m.integer("fits") == std::int64_t{1} << 62);
  CHECK(*m.number("u8") == 255.0);
  CHECK(*m.number("f32") == 0.5);
  CHECK(*m.number("f64") == 0.25);
  CHECK(*m.boolean("bool"));
  CHECK(*m.string("string") == "text");
  CHECK(*m.integers("u16s") == std::vector<std::int64_t>{1, 2});
  CHECK(*m.floats("f32s") == std::vector<float>{1, 2});
  CHECK(*m.floats("f64s") == std::vector<float>{1, 2.5F});
  CHECK(m.strings("strings")->size() == 1);

  const auto fails = [](const auto& r, errc code, const char* where) {
    REQUIRE_FALSE(r);
    CHECK(r.error().code == code);
    CHECK(r.error().where == where);
    CHECK_FALSE(r.error().message.empty());
  };
  fails(m.integer("u64"), errc::malformed, "u64");
  fails(m.integers("u64s"), errc::malformed, "u64s");
  fails(m.integer("f32"), errc::malformed, "f32");
  fails(m.integer("bool"), errc::malformed, "bool");
  fails(m.number("bool"), errc::malformed, "bool");
  fails(m.number("string"), errc::malformed, "string");
  fails(m.boolean("u8"), errc::malformed, "u8");
  fails(m.string("u8"), errc::malformed, "u8");
  fails(m.strings("string"), errc::malformed, "string");
  fails(m.integers("u8"), errc::malformed, "u8");
  fails(m.integers("bools"), errc::malformed, "bools");
  fails(m.floats("u16s"), errc::malformed, "u16s");
  fails(m.integer("none"), errc::not_found, "none");
  fails(m.number("none"), errc::not_found, "none");
  fails(m.boolean("none"), errc::not_found, "none");
  fails(m.string("none"), errc::not_found, "none");
  fails(m.strings("none"), errc::not_found, "none");
  fails(m.integers("none"), errc::not_found, "none");
  fails(m.floats("none"), errc::not_found, "none");
  CHECK(m.integer("string").error().message == "the value must be an integer but is string");
}
