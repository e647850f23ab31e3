// Every way a safetensors file or its index can be wrong is an error that says so.
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
using fw::test::raw_safetensors;

namespace {

struct folder_fault {
  std::string what;  ///< Part of the expected message.
  raw file;
  errc code = errc::malformed;
};

/// One tensor `a` of two f32 with these fields.
std::string with_fields(const std::string& fields) { return R"({"a":{)" + fields + "}}"; }

std::vector<folder_fault> folder_faults() {
  std::vector<folder_fault> list;
  const auto add = [&](std::string what, const std::string& json, std::size_t data, errc code = errc::malformed) {
    list.push_back({std::move(what), raw_safetensors(json, data), code});
  };
  const std::string dtype = R"("dtype":"F32")";
  const std::string shape = R"("shape":[2])";
  const std::string offsets = R"("data_offsets":[0,8])";

  list.push_back({"bytes left", raw().u64(3).plain("{}")});
  list.push_back({"bytes left", raw().u64(~0ULL).plain("{}")});
  list.push_back({"bytes left", raw().u64(1ULL << 63).plain("{}")});
  add("not valid", "{", 0);
  add("not valid", "{}x", 0);
  add("not valid", "{\"a\":}", 0);
  add("not valid", "{\"\xFF\":1}", 0);
  add("not valid", "{\"a\":\"\xC3\"}", 0);
  add("missing", with_fields(dtype + "," + shape), 8);
  add("missing", with_fields(dtype + "," + offsets), 8);
  add("missing", with_fields(shape + "," + offsets), 8);
  add("missing", with_fields(""), 0);
  add("missing", with_fields(dtype + "," + shape + R"(,"data_offsets":[0])"), 8);
  add("more than two numbers", with_fields(dtype + "," + shape + R"(,"data_offsets":[0,8,8])"), 8);
  add("appears twice", with_fields(dtype + "," + dtype + "," + shape + "," + offsets), 8);
  add("appears twice", with_fields(dtype + "," + shape + "," + shape + "," + offsets), 8);
  add("appears twice", with_fields(dtype + "," + shape + "," + offsets + "," + offsets), 8);
  add("two tensors",
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
      2);
  add("unexpected", R"({"a":1})", 0);
  add("unexpected", R"({"a":"text"})", 0);
  add("unexpected", R"({"a":[1]})", 0);
  add("unexpected", R"({"a":null})", 0);
  add("unexpected", R"({"a":true})", 0);
  add("unexpected", with_fields(R"("dtype":5,)" + shape + "," + offsets), 8);
  add("unexpected", with_fields(R"("dtype":["F32"],)" + shape + "," + offsets), 8);
  add("unexpected", with_fields(R"("dtype":{"x":1},)" + shape + "," + offsets), 8);
  add("unexpected", with_fields(dtype + R"(,"shape":2,)" + offsets), 8);
  add("unexpected", with_fields(dtype + R"(,"shape":"2",)" + offsets), 8);
  add("unexpected", with_fields(dtype + R"(,"shape":[[2]],)" + offsets), 8);
  add("unexpected", with_fields(dtype + R"(,"shape":["2"],)" + offsets), 8);
  add("unexpected", with_fields(dtype + R"(,"shape":[{}],)" + offsets), 8);
  add("unexpected", with_fields(dtype + R"(,"shape":{},)" + offsets), 8);
  add("negative", with_fields(dtype + R"(,"shape":[-2],)" + offsets), 8);
  add("negative", with_fields(dtype + "," + shape + R"(,"data_offsets":[-8,0])"), 8);
  add("not a non-negative integer", with_fields(dtype + R"(,"shape":[2.0],)" + offsets), 8);
  add("not a non-negative integer", with_fields(dtype + R"(,"shape":[99999999999999999999999],)" + offsets), 8);
  add("exceeds 63 bits", with_fields(dtype + R"(,"shape":[18446744073709551615],)" + offsets), 8);
  add("exceeds 63 bits", with_fields(dtype + R"(,"shape":[4294967296,4294967296],)" + offsets), 8);
  add("does not fit its shape", with_fields(dtype + R"(,"shape":[4611686018427387906],)" + offsets),
      8);  // wraps to 8 bytes
  add("does not fit its shape", with_fields(dtype + R"(,"shape":[3],)" + offsets), 8);
  add("does not fit its shape", with_fields(dtype + R"(,"shape":[],)" + offsets), 8);
  add("end before they begin", with_fields(dtype + "," + shape + R"(,"data_offsets":[8,0])"), 8);
  add("more than 6 dimensions", with_fields(dtype + R"(,"shape":[1,1,1,1,1,1,2],)" + offsets), 8, errc::unsupported);
  add("dtype 'F31'", with_fields(R"("dtype":"F31",)" + shape + "," + offsets), 8, errc::unsupported);
  add("dtype 'Q4_0'", with_fields(R"("dtype":"Q4_0",)" + shape + "," + offsets), 8, errc::unsupported);
  add("beyond the end", with_fields(dtype + "," + shape + "," + offsets), 7);
  add("last 1 bytes", with_fields(dtype + "," + shape + "," + offsets), 9);
  add("last 5 bytes", "{}", 5);
  const auto two = [](int begin, int end) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[)" +
           std::to_string(end - begin) + R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) +
           "]}}";
  };
  add("belong to no tensor", two(5, 9), 9);
  add("overlap", two(3, 8), 8);
  add("overlap", two(0, 4), 4);
  add("the name is empty", R"({"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0);
  add("unexpected", R"({"__metadata__":{"a":1}})", 0);
  add("unexpected", R"({"__metadata__":{"a":{"b":"c"}}})", 0);
  add("unexpected", R"({"__metadata__":{"a":["b"]}})", 0);
  add("unexpected", R"({"__metadata__":"a"})", 0);
  add("unexpected", R"({"__metadata__":["a"]})", 0);
  add("appears twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0);
  add("appears twice", R"({"__metadata__":{"a":"1"},"__metadata__":{"b":"2"}})", 0);
  const std::string deep = std::string(20000, '[') + std::string(20000, ']');
  add("unexpected", R"({"a":)" + deep + "}", 0);
  add("nested too deeply", with_fields(dtype + "," + shape + "," + offsets + R"(,"more":)" + deep), 8);
  std::string objects;
  for (int i = 0; i < 20000; ++i) objects += R"({"x":)";
  add("nested too deeply", with_fields(R"("more":)" + objects), 0);
  return list;
}

}  // namespace

TEST_CASE("malformed safetensors is refused", "[io]") {
  for (const folder_fault& f : folder_faults()) {
    INFO("expected: " << f.what);
    counting_reader reader{f.file.bytes()};
    const fw::test::temp_folder folder;
    f.file.save(folder / "m.safetensors");
    // By content through a span it may also be found to be no model file at all; its name says what it should be.
    const auto from_memory = io::archive::open(f.file.bytes());
    REQUIRE_FALSE(from_memory);
    REQUIRE_FALSE(io::archive::open(reader.callback()));
    const auto opened = io::archive::open(folder / "m.safetensors");
    REQUIRE_FALSE(opened);
    INFO(opened.error().to_string());
    CHECK(opened.error().code == f.code);
    CHECK(opened.error().message.find(f.what) != std::string::npos);
    CHECK(opened.error().where.find("m.safetensors") != std::string::npos);
    CHECK(opened.error().to_string().find('\n') == std::string::npos);
    CHECK(from_memory.error().message == opened.error().message);
  }
}

TEST_CASE("short safetensors files are refused", "[io]") {
  const fw::test::temp_folder folder;
  for (std::size_t n = 0; n < 9; ++n) {
    raw().zeros(n).save(folder / "m.safetensors");
    const auto opened = io::archive::open(folder / "m.safetensors");
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == errc::malformed);
  }
}

TEST_CASE("what safetensors allows is read", "[io]") {
  // Spaces behind the header, fields that are not known, escapes in names, scalars, and tensors without elements.
  const raw file = raw_safetensors(
      R"({"__metadata__":{},"b\u00e9":{"shape":[],"more":{"x":[1,{"y":null}],"z":1.5},"data_offsets":[4,8],"dtype":"F32","t":true},)"
      R"("none":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]},"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4],"n":-1}}   )",
      8);
  const auto opened = io::archive::open(file.bytes());
  if (!opened) FAIL(opened.error().to_string());
  REQUIRE(opened->tensors().size() == 3);
  CHECK(opened->find("b\xC3\xA9")->dims == fw::shape{});
  CHECK(opened->find("a")->dims == fw::shape{2, 1});
  CHECK(opened->tensors()[0].name == "a");  // in the order of their data
  CHECK(opened->view(*opened->find("none")));
  CHECK(opened->metadata().entries().empty());
}

TEST_CASE("sharded safetensors", "[io]") {
  const fw::test::temp_folder folder;
  raw_safetensors(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"extra":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
      3)
      .save(folder / "m-00001-of-00002.safetensors");
  raw_safetensors(R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", 3)
      .save(folder / "m-00002-of-00002.safetensors");
  const auto open = [&](const std::string& json) {
    raw().plain(json).save(folder / "m.safetensors.index.json");
    return io::archive::open(folder / "m.safetensors.index.json");
  };
  const auto good = open(
      R"({"metadata":{"total_size":5,"deep":[[1]]},"weight_map":{"b":"m-00002-of-00002.safetensors","a":"m-00001-of-00002.safetensors"}})");
  if (!good) FAIL(good.error().to_string());
  CHECK(good->parts() == 2);
  CHECK(good->container() == io::container::safetensors);
  REQUIRE(good->tensors().size() == 2);  // the index does not list `extra`
  CHECK(good->find("a")->part == 0);
  CHECK(good->find("b")->part == 1);
  CHECK(good->view(*good->find("b")));
  CHECK(*good->metadata().string("format") == "pt");

  struct fault {
    std::string what, json;
  };
  for (const fault& f : std::vector<fault>{
           {"names this tensor, which the file lacks", R"({"weight_map":{"c":"m-00002-of-00002.safetensors"}})"},
           {"names this tensor, which the file lacks",
            R"({"weight_map":{"a":"m-00002-of-00002.safetensors","b":"m-00002-of-00002.safetensors"}})"},
           {"not the name of a file in the same folder", R"({"weight_map":{"a":"../m-00001-of-00002.safetensors"}})"},
           {"not the name of a file in the same folder", R"({"weight_map":{"a":"/etc/passwd"}})"},
           {"not the name of a file in the same folder", R"({"weight_map":{"a":"c:\\x"}})"},
           {"not the name of a file in the same folder", R"({"weight_map":{"a":""}})"},
           {"not the name of a file in the same folder", R"({"weight_map":{"a":".."}})"},
           {"not the name of a file in the same folder", R"({"weight_map":{"a":"x\u0000y"}})"},
           {"listed twice",
            R"({"weight_map":{"a":"m-00001-of-00002.safetensors","a":"m-00001-of-00002.safetensors"}})"},
           {"weight_map appears twice", R"({"weight_map":{},"weight_map":{}})"},
           {"no weight_map", R"({"weight_map":{}})"},
           {"no weight_map", R"({"metadata":{}})"},
           {"unexpected", R"({"weight_map":[]})"},
           {"unexpected", R"({"weight_map":"x"})"},
           {"unexpected", R"({"weight_map":{"a":1}})"},
           {"unexpected", R"({"weight_map":{"a":{"b":"c"}}})"},
           {"no weight_map", R"([1])"},
           {"nested too deeply", R"({"metadata":)" + std::string(20000, '[')},
           {"not valid", R"({"weight_map":{)"},
           {"no such", R"({"weight_map":{"a":"missing.safetensors"}})"}}) {
    INFO(f.what << " " << f.json.substr(0, 100));
    const auto opened = open(f.json);
    REQUIRE_FALSE(opened);
    if (f.what == "no such") {
      CHECK(opened.error().code == errc::not_found);
      CHECK(opened.error().where.find("missing.safetensors") != std::string::npos);
    } else {
      INFO(opened.error().to_string());
      CHECK(opened.error().code == errc::malformed);
      CHECK(opened.error().message.find(f.what) != std::string::npos);
    }
  }
}
