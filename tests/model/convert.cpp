// Writing models as GGUF: what changes its type and what stays, round trips, and what goes wrong.
#include "flywheel/model/convert.hpp"
#include "flywheel/model/open.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;

std::vector<std::byte> bytes_of(const io::archive& file, const io::tensor_info& t) {
  buffer scratch;
  const auto bytes = file.bytes(t, scratch).value();
  return {bytes.begin(), bytes.end()};
}

TEST_CASE("A conversion without a type copies tensors and metadata") {
  const temp_folder folder;
  write_tiny_model(folder / "a.gguf", {.experts = 4});
  const io::archive from = io::archive::open(folder / "a.gguf").value();
  const converted_model done = convert(from, folder / "b.gguf").value();
  CHECK(done.tensors == from.tensors().size());
  CHECK(done.changed == 0);
  CHECK(read_bytes(folder / "a.gguf") == read_bytes(folder / "b.gguf"));
}

TEST_CASE("Matrices change their type; vectors, routers and rows that are no whole blocks do not") {
  const temp_folder folder;
  write_tiny_model(folder / "a.gguf", {.hidden = 64, .ffn = 96, .experts = 4},
                   [](io::metadata&, std::vector<tiny_tensor>& t) {
                     t.push_back({{"blk.0.odd.weight", dtype::f32, {3, 20}, 0}, std::vector<float>(60, 0.5F)});
                   });
  const io::archive from = io::archive::open(folder / "a.gguf").value();
  const auto steps = std::make_shared<std::vector<std::uint64_t>>();
  convert_options options{.type = dtype::q8_0};
  options.control.progress = [=](std::uint64_t done, std::uint64_t total, std::string_view) {
    CHECK(done <= total);
    steps->push_back(done);
  };
  const converted_model done = convert(from, folder / "b.gguf", options).value();
  const io::archive to = io::archive::open(folder / "b.gguf").value();
  CHECK(steps->back() == done.bytes);
  CHECK(to.metadata().integer("general.file_type").value() == 7);
  std::uint64_t changed = 0;
  for (const io::tensor_info& t : from.tensors()) {
    INFO(t.name);
    const io::tensor_info* made = to.find(t.name);
    REQUIRE(made != nullptr);
    const bool stays = t.dims.rank() == 1 || t.name.ends_with("ffn_gate_inp.weight");
    const dtype wanted = stays ? dtype::f32 : t.name == "blk.0.odd.weight" ? dtype::f16 : dtype::q8_0;
    CHECK(to_string(made->type) == to_string(wanted));
    changed += stays ? 0 : 1;
    std::vector<std::byte> expected = bytes_of(from, t);
    if (!stays) {
      std::vector<std::byte> encoded(dense_bytes(wanted, t.dims).value());
      formats::find_encoder(wanted)(reinterpret_cast<const float*>(expected.data()), t.dims.elements(), encoded.data());
      expected = encoded;
    }
    CHECK(bytes_of(to, *made) == expected);
  }
  CHECK(done.changed == changed);

  // Quantized matrices stay: rounding twice would lose more.
  const converted_model again = convert(to, folder / "c.gguf", {.type = dtype::q4_0}).value();
  CHECK(again.changed == 0);
}

TEST_CASE("Conversions that fail leave no file") {
  const temp_folder folder;
  write_tiny_model(folder / "a.gguf");
  const io::archive from = io::archive::open(folder / "a.gguf").value();
  for (const dtype type : {dtype::i32, dtype::u8, dtype::q8_g128, dtype::iq2_s})
    CHECK(convert(from, folder / "b.gguf", {.type = type}).error().code == errc::invalid_argument);
  std::stop_source stop;
  stop.request_stop();
  convert_options stopped;
  stopped.control.stop = stop.get_token();
  CHECK(convert(from, folder / "b.gguf", stopped).error().code == errc::cancelled);
  CHECK(convert(from, folder / "nowhere" / "b.gguf").error().code != errc::internal);
  CHECK(convert(io::archive{}, folder / "b.gguf").error().code == errc::unsupported);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

}  // namespace
