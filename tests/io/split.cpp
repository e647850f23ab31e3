// Split GGUF: any part opens the whole; whatever does not fit together is refused.
#include <filesystem>
#include <string>

#include "flywheel/io/archive.hpp"
#include "io/raw.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"

namespace fw = flywheel;
namespace io = flywheel::io;
using fw::errc;
using fw::test::raw;

namespace {

std::string part_name(int number, int count = 3) {
  char text[64];
  std::snprintf(text, sizeof text, "model-%05d-of-%05d.gguf", number + 1, count);
  return text;
}

/// Part `number` with one tensor of 8 bytes whose first is its number.
raw part(int number, int count = 3, const std::string& tensor = "", std::uint32_t total = 3) {
  raw r;
  r.gguf(1, number == 0 ? 4 : 3);
  if (number == 0) r.key_text("general.architecture", "llama");
  r.key_u16("split.no", static_cast<std::uint16_t>(number)).key_u16("split.count", static_cast<std::uint16_t>(count));
  r.text("split.tensors.count").u32(5).u32(total);
  r.tensor(tensor.empty() ? "t" + std::to_string(number) : tensor, {8}, 24, 0)
      .pad(32)
      .u8(static_cast<std::uint8_t>(number))
      .zeros(31);
  return r;
}

}  // namespace

TEST_CASE("any part of a split model opens the whole", "[io]") {
  const fw::test::temp_folder folder;
  for (int i = 0; i < 3; ++i) part(i).save(folder / part_name(i));
  for (int i = 0; i < 3; ++i) {
    const auto opened = io::archive::open(folder / part_name(i));
    if (!opened) FAIL(opened.error().to_string());
    CHECK(opened->parts() == 3);
    CHECK(opened->path() == folder / part_name(i));
    CHECK(opened->file_bytes() ==
          3 * std::filesystem::file_size(folder / part_name(0)) - (part(0).size() - part(1).size()) * 2);
    REQUIRE(opened->tensors().size() == 3);
    for (int t = 0; t < 3; ++t) {
      const io::tensor_info* tensor = opened->find("t" + std::to_string(t));
      REQUIRE(tensor == &opened->tensors()[static_cast<std::size_t>(t)]);
      CHECK(tensor->part == static_cast<std::uint32_t>(t));
      const auto view = opened->view(*tensor);
      REQUIRE(view);
      CHECK(std::to_integer<int>(view->data[0]) == t);
    }
    CHECK(*opened->metadata().string("general.architecture") == "llama");
    // One model: its metadata can be written to a single file.
    CHECK(opened->metadata().entries().size() == 1);
  }
}

TEST_CASE("a single file that says so is not split", "[io]") {
  const fw::test::temp_folder folder;
  part(0, 1, "", 1).save(folder / "any name");
  CHECK(io::archive::open(folder / "any name"));
}

TEST_CASE("parts that do not fit together are refused", "[io]") {
  const fw::test::temp_folder folder;
  const auto refused = [&](errc code, const std::string& what, const std::string& where) {
    const auto opened = io::archive::open(folder / part_name(0));
    REQUIRE_FALSE(opened);
    INFO(opened.error().to_string());
    CHECK(opened.error().code == code);
    CHECK(opened.error().message.find(what) != std::string::npos);
    CHECK(opened.error().where.find(where) != std::string::npos);
  };
  for (int i = 0; i < 3; ++i) part(i).save(folder / part_name(i));
  REQUIRE(io::archive::open(folder / part_name(0)));

  part(1).save(folder / part_name(2));
  refused(errc::malformed, "do not fit the file's name", part_name(2));
  part(2, 4).save(folder / part_name(2));
  refused(errc::malformed, "do not fit the file's name", part_name(2));
  raw().gguf(0, 0).save(folder / part_name(2));
  refused(errc::malformed, "do not fit the file's name", part_name(2));
  part(2, 3, "t1").save(folder / part_name(2));
  refused(errc::malformed, "two tensors", "'t1'");
  part(2, 3, "", 4).save(folder / part_name(2));
  refused(errc::malformed, "split.tensors.count", part_name(2));
  raw().plain("GGUF").save(folder / part_name(2));
  refused(errc::malformed, "ends inside the version", part_name(2));
  std::filesystem::remove(folder / part_name(2));
  refused(errc::not_found, "part of the split model", part_name(2));

  for (int i = 0; i < 3; ++i) part(i, 3, "", 5).save(folder / part_name(i));
  refused(errc::malformed, "3 tensors, not the 5", part_name(0));

  part(0).save(folder / "other.gguf");
  const auto opened = io::archive::open(folder / "other.gguf");
  REQUIRE_FALSE(opened);
  CHECK(opened.error().message.find("must end with -00001-of-00003.gguf") != std::string::npos);
}
