// Writing models as GGUF: what changes its type and what stays, round trips, and what goes wrong.
#include "flywheel/model/convert.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/open.hpp"
#include "flywheel/model/session.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;

std::vector<std::byte> converted_bytes_of(const io::archive& file, const io::tensor_info& t) {
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
    std::vector<std::byte> expected = converted_bytes_of(from, t);
    if (!stays) {
      std::vector<std::byte> encoded(dense_bytes(wanted, t.dims).value());
      formats::find_encoder(wanted)(reinterpret_cast<const float*>(expected.data()), t.dims.elements(), encoded.data());
      expected = encoded;
    }
    CHECK(converted_bytes_of(to, *made) == expected);
  }
  CHECK(done.changed == changed);

  // Quantized matrices stay: rounding twice would lose more.
  const converted_model again = convert(to, folder / "c.gguf", {.type = dtype::q4_0}).value();
  CHECK(again.changed == 0);
}

std::vector<float> logits_of(const std::filesystem::path& path) {
  const model loaded = model::open(path).value();
  session s = std::move(loaded.new_session({})).value();
  const token_id tokens[] = {1, 270, 300};
  s.prefill(tokens).value();
  return {s.logits().begin(), s.logits().end()};
}

TEST_CASE("Device formats come back from GGUF and from safetensors bit for bit") {
  const temp_folder folder;
  // Rows of 256 are whole groups, rows of 192 are not.
  write_tiny_model(folder / "a.gguf", {.hidden = 256, .ffn = 192}, [](io::metadata& meta, std::vector<tiny_tensor>&) {
    meta.set("general.file_type", std::uint32_t{0});
    meta.set("test.numbers", std::vector<float>{0.1F, -3e38F, 1e-42F});
    meta.set("test.flags", std::vector<bool>{true, false});
  });
  const io::archive from = io::archive::open(folder / "a.gguf").value();
  for (const dtype type : {dtype::q8_g128, dtype::q4_g128, dtype::q8_channel, dtype::q4_channel}) {
    INFO(to_string(type));
    const converted_model one = convert(from, folder / "b.gguf", {.type = type}).value();
    const converted_model two = convert(from, folder / "b.safetensors", {.type = type}).value();
    CHECK(one.bytes == two.bytes);
    const io::archive gguf = open_model_archive(folder / "b.gguf").value();
    const io::archive safetensors = open_model_archive(folder / "b.safetensors").value();
    CHECK_FALSE(gguf.metadata().contains("general.file_type"));
    REQUIRE(gguf.metadata().entries().size() == safetensors.metadata().entries().size());
    for (const io::entry& e : gguf.metadata().entries()) CHECK(*safetensors.metadata().find(e.key) == e.value);
    REQUIRE(gguf.tensors().size() == safetensors.tensors().size());
    const dtype by_row = type == dtype::q8_g128 ? dtype::q8_channel : type == dtype::q4_g128 ? dtype::q4_channel : type;
    for (const io::tensor_info& t : gguf.tensors()) {
      INFO(t.name);
      const io::tensor_info* other = safetensors.find(t.name);
      REQUIRE(other != nullptr);
      CHECK(other->type == t.type);
      CHECK(other->dims == t.dims);
      CHECK(converted_bytes_of(safetensors, *other) == converted_bytes_of(gguf, t));
      if (t.dims.rank() > 1) CHECK(t.type == (t.dims.cols() % 128 == 0 ? type : by_row));
    }
    CHECK(logits_of(folder / "b.gguf") == logits_of(folder / "b.safetensors"));

    // What others read: plain arrays of codes and scales.
    const io::archive plain = io::archive::open(folder / "b.safetensors").value();
    const io::tensor_info& codes = *plain.find("blk.0.attn_q.weight");
    const io::tensor_info& scales = *plain.find("blk.0.attn_q.weight.scales");
    const std::vector<std::byte> c = converted_bytes_of(plain, codes), s = converted_bytes_of(plain, scales);
    std::vector<float> expected(256 * 256);
    const io::tensor_info& t = *gguf.find("blk.0.attn_q.weight");
    formats::decode(tensor_view(t.type, t.dims, converted_bytes_of(gguf, t).data()), expected).value();
    const bool four = codes.type == dtype::u8;
    std::vector<float> decoded_scales(static_cast<std::size_t>(scales.dims.elements()));
    formats::decode(tensor_view(scales.type, scales.dims, s.data()), decoded_scales).value();
    const std::size_t per_row = decoded_scales.size() / 256;
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const int code =
          four ? std::to_integer<int>(c[i / 2] >> (i % 2 * 4) & std::byte{15}) - 8 : static_cast<std::int8_t>(c[i]);
      wrong += expected[i] != static_cast<float>(code) * decoded_scales[i / 256 * per_row + i % 256 / (256 / per_row)];
    }
    CHECK(wrong == 0);
  }

  // Codes and scales that fit no format are refused.
  io::metadata meta;
  meta.set("flywheel.safetensors", std::string("1"));
  const io::tensor_plan plans[] = {{"a", dtype::i8, {4, 6}, 0}, {"a.scales", dtype::f16, {4}, 0}};
  io::writer out =
      std::move(io::writer::create(folder / "bad.safetensors", io::container::safetensors, meta, plans)).value();
  const std::vector<std::byte> zeros(24);
  out.write(zeros).value();
  out.write(std::span(zeros).first(8)).value();
  out.finish().value();
  CHECK(open_model_archive(folder / "bad.safetensors").error().code == errc::malformed);
}

TEST_CASE("Conversions that fail leave no file") {
  const temp_folder folder;
  write_tiny_model(folder / "a.gguf");
  const io::archive from = io::archive::open(folder / "a.gguf").value();
  for (const dtype type : {dtype::i32, dtype::u8, dtype::f64, dtype::iq2_s})
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
