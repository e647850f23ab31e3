// Whole models in smaller types: which bytes come out, going on after interruptions, and what is refused.
#include "flywheel/quant/quantize_model.hpp"

#include <chrono>
#include <fstream>
#include <limits>
#include <stop_token>

#include "flywheel/model/convert.hpp"
#include "flywheel/model/session.hpp"
#include "src/quant/mixes.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;
using quant::quantize_model;
using quant::quantize_options;

const tiny_model wide{.hidden = 256, .layers = 2, .ffn = 512, .weights = dtype::f16};

struct fixture {
  temp_folder folder;
  std::filesystem::path in = folder / "a.gguf", out = folder / "b.gguf";
  io::archive from;
  explicit fixture(const tiny_model& m = wide,
                   const std::function<void(io::metadata&, std::vector<tiny_tensor>&)>& edit = {}) {
    write_tiny_model(in, m, edit);
    from = io::archive::open(in).value();
  }
  [[nodiscard]] std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder.path()), {}));
  }
};

TEST_CASE("A mix's types are in the file, which loads and computes") {
  const fixture f;
  const quant::quantize_report report = quantize_model(f.from, f.out, {.type = "Q4_K_M"}).value();
  CHECK(f.files() == 2);  // no partial file, no journal
  const io::archive to = io::archive::open(f.out).value();
  const quant::model_facts facts = quant::facts_of(f.from, false);
  std::uint64_t bytes = 0;
  for (const io::tensor_info& t : f.from.tensors()) {
    INFO(t.name);
    const io::tensor_info* made = to.find(t.name);
    REQUIRE(made != nullptr);
    const dtype wanted = t.dims.rank() == 1 ? t.type : quant::type_in_mix(*quant::find_mix("Q4_K_M"), facts, t);
    CHECK(to_string(made->type) == to_string(wanted));
    bytes += made->bytes;
  }
  CHECK(report.bytes == bytes);
  CHECK(to.metadata().integer("general.file_type").value() == 15);
  CHECK(to.metadata().integer("general.quantization_version").value() == 2);
  CHECK(to.metadata().string("flywheel.quantize.method").value() == "search");
  const model loaded = model::open(f.out).value();
  session s = std::move(loaded.new_session({})).value();
  const token_id tokens[] = {1, 270, 300};
  s.prefill(tokens).value();

  const quant::quantize_report dry =
      quantize_model(f.from, f.folder / "c.gguf", {.type = "Q4_K_M", .dry_run = true}).value();
  CHECK(dry.bytes == report.bytes);
  CHECK(f.files() == 2);
}

TEST_CASE("Pure types, overrides and rows that do not fit") {
  const fixture f(wide, [](io::metadata&, std::vector<tiny_tensor>& t) {
    t.push_back({{"blk.0.odd.weight", dtype::f32, {3, 96}, 0}, std::vector<float>(3 * 96, 0.5F)});
  });
  quantize_options options{.type = "Q4_K", .pure = true, .overrides = {{"attn_v|token_embd", dtype::q8_0}}};
  const quant::quantize_report report = quantize_model(f.from, f.out, options).value();
  const io::archive to = io::archive::open(f.out).value();
  CHECK(to.find("blk.1.ffn_down.weight")->type == dtype::q4_k);
  CHECK(to.find("blk.1.attn_v.weight")->type == dtype::q8_0);
  CHECK(to.find("token_embd.weight")->type == dtype::q8_0);
  CHECK(to.find("blk.0.odd.weight")->type == dtype::q5_0);
  CHECK(to.metadata().integer("general.file_type").value() == 14);
  for (const quant::quantized_tensor& t : report.tensors) CHECK(t.fallback == (t.name == "blk.0.odd.weight"));
}

TEST_CASE("The number of threads does not show") {
  const fixture f;
  for (const unsigned threads : {1U, 3U}) {
    context_options shared;
    shared.threads = threads;
    quantize_model(f.from, f.folder / std::to_string(threads),
                   {.type = "Q4_0", .context = context::create(std::move(shared)).value()})
        .value();
  }
  CHECK(read_bytes(f.folder / "1") == read_bytes(f.folder / "3"));
}

/// Stops after that many tensors' worth of progress calls.
quantize_options stopping(std::stop_source& stop, int calls, std::string type = "Q5_K_M") {
  quantize_options options{.type = std::move(type)};
  options.control.stop = stop.get_token();
  options.control.progress = [&stop, left = calls](std::uint64_t, std::uint64_t, std::string_view) mutable {
    if (--left == 0) stop.request_stop();
  };
  return options;
}

TEST_CASE("An interrupted run goes on and ends in the same bytes") {
  const fixture f;
  quantize_model(f.from, f.folder / "whole.gguf", {.type = "Q5_K_M"}).value();
  const std::vector<std::byte> whole = read_bytes(f.folder / "whole.gguf");
  const std::filesystem::path partial = f.folder / "b.gguf.partial";
  for (const int calls : {1, 4, 9}) {
    INFO(calls);
    std::stop_source stop;
    CHECK(quantize_model(f.from, f.out, stopping(stop, calls)).error().code == errc::cancelled);
    CHECK_FALSE(std::filesystem::exists(f.out));
    CHECK(std::filesystem::exists(partial));
  }
  SECTION("as it is") {
    const quant::quantize_report report = quantize_model(f.from, f.out, {.type = "Q5_K_M"}).value();
    CHECK(report.resumed > 0);
    CHECK(report.resumed < report.tensors.size());
  }
  SECTION("with damaged data and a journal that breaks off") {
    const io::archive half = io::archive::open(partial).value();
    const std::uint64_t at = half.find("token_embd.weight")->offset;
    std::fstream file(partial, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    file.put('x').put('y').put('z');
    file.close();
    std::ofstream(f.folder / "b.gguf.partial.journal", std::ios::app) << "7 00";
    CHECK(quantize_model(f.from, f.out, {.type = "Q5_K_M"}).value().resumed > 0);
  }
  SECTION("without a journal") {
    std::filesystem::remove(f.folder / "b.gguf.partial.journal");
    CHECK(quantize_model(f.from, f.out, {.type = "Q5_K_M"}).error().where == partial.string());
    std::filesystem::remove(partial);
    CHECK(quantize_model(f.from, f.out, {.type = "Q5_K_M"}).value().resumed == 0);
  }
  SECTION("after the model changed it starts anew") {
    const auto before = std::filesystem::last_write_time(f.in);
    std::filesystem::last_write_time(f.in, before + std::chrono::seconds(2));
    CHECK(quantize_model(f.from, f.out, {.type = "Q5_K_M"}).value().resumed == 0);
  }
  SECTION("with other arguments it starts anew") {
    CHECK(quantize_model(f.from, f.out, {.type = "Q5_K_M", .method = quant::method::nearest}).value().resumed == 0);
    quantize_model(f.from, f.folder / "whole.gguf", {.type = "Q5_K_M", .method = quant::method::nearest}).value();
    CHECK(read_bytes(f.out) == read_bytes(f.folder / "whole.gguf"));
    return;
  }
  CHECK(read_bytes(f.out) == whole);
  CHECK(f.files() == 3);
}

TEST_CASE("Nonsense is refused and leaves nothing") {
  const fixture f(wide, [](io::metadata&, std::vector<tiny_tensor>& t) {
    t.push_back({{"blk.0.bad.weight", dtype::f32, {4, 256}, 0}, std::vector<float>(4 * 256, 0.5F)});
    t.back().values[2 * 256 + 7] = std::numeric_limits<float>::quiet_NaN();
  });
  const auto refused = [&](const quantize_options& options, const char* part) {
    const auto done = quantize_model(f.from, f.out, options);
    REQUIRE(!done);
    INFO(done.error().to_string());
    CHECK(done.error().code == errc::invalid_argument);
    CHECK(done.error().to_string().find(part) != std::string::npos);
    CHECK(f.files() == 1);
  };
  refused({.type = "Q4_K_X"}, "Q4_K_X");
  refused({.type = "I32"}, "I32");
  refused({.type = "Q4_0", .overrides = {{"attn_(v", dtype::q8_0}}}, "attn_(v");
  refused({.type = "Q2_K_S"}, "importance");
  refused({.type = "Q4_0", .calibration = {{"nothing.txt", ""}}}, "nothing.txt");
  refused({.type = "Q8_0"}, "blk.0.bad.weight");
  refused({.type = "Q8_0"}, "[2, 7]");
  CHECK(quantize_model(f.from, f.in, {.type = "Q8_0"}).error().code == errc::invalid_argument);
  CHECK(quantize_model(f.from, f.folder / "nowhere" / "b.gguf", {.type = "Q8_0"}).error().code == errc::not_found);
  CHECK(quantize_model(io::archive{}, f.out, {.type = "Q8_0"}).error().code == errc::unsupported);
}

TEST_CASE("No file of the model is written over") {
  const auto check = [](const io::archive& from, const std::filesystem::path& file, const std::filesystem::path& out) {
    INFO(file.string() << ", " << out.string());
    const std::vector<std::byte> before = read_bytes(file);
    const auto done = quantize_model(from, out, {.type = "Q8_CHANNEL"});
    REQUIRE(!done);
    CHECK(done.error().code == errc::invalid_argument);
    CHECK(done.error().message.find("another name") != std::string::npos);
    CHECK(read_bytes(file) == before);
  };
  SECTION("nor is one that the work in progress would be") {
    for (const char* name : {"m.gguf", "m.gguf.partial", "m.gguf.partial.journal"}) {
      const temp_folder folder;
      write_tiny_model(folder / name, wide);
      check(io::archive::open(folder / name).value(), folder / name, folder / "m.gguf");
      std::filesystem::create_hard_link(folder / name, folder / "other");
      check(io::archive::open(folder / "other").value(), folder / "other", folder / "m.gguf");
      if (!std::filesystem::exists(folder / "m.gguf")) std::ofstream(folder / "m.gguf").close();
      std::filesystem::create_symlink(folder / "m.gguf", folder / "link.gguf");
      check(io::archive::open(folder / "other").value(), folder / "other", folder / "link.gguf");
    }
  }
  SECTION("nor one of its folder") {
    const temp_folder folder;
    write_tiny_model(folder / "weights", wide);
    const io::archive weights = io::archive::open(folder / "weights").value();
    io::archive_content content;
    content.metadata = weights.metadata();
    content.tensors.assign(weights.tensors().begin(), weights.tensors().end());
    content.sources.assign(weights.sources().begin(), weights.sources().end());
    content.path = folder.path();
    const io::archive from = io::archive::assemble(std::move(content)).value();
    std::ofstream(folder / "config.json") << "{}";
    for (const char* name : {"weights", "config.json"}) {
      check(from, folder / name, folder / name);
      CHECK(convert(from, folder / name).error().code == errc::invalid_argument);
    }
    for (int i = 0; i < 2; ++i) quantize_model(from, folder / "small.gguf", {.type = "Q4_0"}).value();
  }
}

TEST_CASE("What is quantized already is taken on request only") {
  const fixture f;
  quantize_model(f.from, f.folder / "q8.gguf", {.type = "Q8_0"}).value();
  const io::archive once = io::archive::open(f.folder / "q8.gguf").value();
  CHECK(quantize_model(once, f.out, {.type = "Q4_0"}).error().where == "allow_requantize");
  quantize_model(once, f.out, {.type = "Q4_0", .pure = true, .allow_requantize = true}).value();
  CHECK(io::archive::open(f.out).value().find("blk.0.attn_q.weight")->type == dtype::q4_0);
}

/// Text to measure on, and a model whose outputs differ by what is rounded.
std::vector<quant::calibration_text> texts() {
  std::string words;
  for (int i = 0; i < 400; ++i) words += i % 3 == 0 ? "hello the world " : "and the other thing in here ";
  return {{"words", std::move(words)}};
}
quantize_options measuring() {
  quantize_options options{
      .method = quant::method::nearest, .calibration = texts(), .calibration_ctx = 32, .calibration_windows = 8};
  return options;
}

TEST_CASE("Types chosen by a target keep to it") {
  const fixture f({.hidden = 256, .layers = 1, .ffn = 256, .weights = dtype::f16});
  SECTION("bits per weight") {
    constexpr double bits = 5;
    quantize_options options = measuring();
    options.target_bpw = bits;
    const quant::quantize_report report = quantize_model(f.from, f.out, options).value();
    INFO(report.bits_per_weight);
    CHECK(report.bits_per_weight <= bits);
    CHECK(report.bits_per_weight > 0.995 * bits);
    REQUIRE(report.measured);
    CHECK(report.measured->kl.value > 0);
  }
  SECTION("the file's bytes") {
    quantize_options options = measuring();
    options.target_bytes = 250'000;
    (void)quantize_model(f.from, f.out, options).value();
    CHECK(std::filesystem::file_size(f.out) <= 250'000);
    CHECK(std::filesystem::file_size(f.out) > 240'000);
  }
  SECTION("divergence") {
    quantize_options options = measuring();
    options.dry_run = true;
    options.target_bpw = 4.5;
    const double coarse = quantize_model(f.from, f.out, options).value().measured->kl.value;
    options.target_bpw.reset();
    options.max_kl = coarse;
    const quant::quantize_report report = quantize_model(f.from, f.out, options).value();
    CHECK(report.measured->kl.value <= 1.2 * coarse);  // that of other windows
    CHECK(report.bits_per_weight < 5.5);
    options.max_kl = coarse / 20;
    const quant::quantize_report finer = quantize_model(f.from, f.out, options).value();
    CHECK(finer.measured->kl.value <= 1.2 * coarse / 20);
    CHECK(finer.bits_per_weight > report.bits_per_weight);
  }
  SECTION("without bound: nothing changes") {
    for (const int which : {0, 1, 2}) {
      quantize_options options = measuring();
      options.dry_run = true;
      if (which == 0) options.target_bpw = 1e300;
      if (which == 1) options.max_kl = 1e-12;
      if (which == 2) options.target_bytes = std::numeric_limits<std::uint64_t>::max();
      const quant::quantize_report report = quantize_model(f.from, f.out, options).value();
      CHECK(report.bytes == report.bytes_before);
      CHECK(report.measured->kl.value < 1e-8);
    }
  }
  SECTION("with nothing left to choose") {
    quantize_options options = measuring();
    options.overrides = {{".*", dtype::q4_k}};
    options.max_kl = 10;
    const quant::quantize_report report = quantize_model(f.from, f.out, options).value();
    CHECK(io::archive::open(f.out).value().find("blk.0.attn_q.weight")->type == dtype::q4_k);
    options.max_kl = 1e-9;
    const auto out_of_reach = quantize_model(f.from, f.out, options);
    REQUIRE(!out_of_reach);
    CHECK(out_of_reach.error().where == "target");
    CHECK(out_of_reach.error().message.find("1e-09") != std::string::npos);
  }
  SECTION("safetensors has none of their types") {
    quantize_options options = measuring();
    options.target_bpw = 4;
    CHECK(quantize_model(f.from, f.folder / "b.safetensors", options).error().where == "type");
    CHECK(f.files() == 1);
  }
}

TEST_CASE("Importance of other activations is refused, or not named") {
  const fixture f;
  quant::importance_matrix m;
  m.entries["blk.0.attn_q.weight"] = {256, std::vector<float>(256, 2.0F), {1.0F}};
  quantize_options options = measuring();
  options.type = "Q4_0";
  options.importance = &m;
  options.importance_file = "m.gguf";
  SECTION("rotated") { options.rotate = true; }
  SECTION("scaled") { options.method = quant::method::awq; }
  (void)quantize_model(f.from, f.out, options).value();
  const io::archive to = io::archive::open(f.out).value();
  CHECK_FALSE(to.metadata().contains("quantize.imatrix.file"));
  CHECK(to.metadata().string("quantize.imatrix.dataset").value() == "words");
  if (!options.rotate) return;
  options.calibration.clear();
  CHECK(quantize_model(f.from, f.folder / "c.gguf", options).error().where == "importance");
}

TEST_CASE("Importance belongs to its tensor and is named in the file") {
  const fixture f;
  quant::importance_matrix m;
  m.datasets = {"text"};
  m.chunks = 3;
  m.entries["blk.0.attn_q.weight"] = {256, std::vector<float>(256, 2.0F), {1.0F}};
  quantize_options options{.type = "Q4_0", .importance = &m, .importance_file = "m.gguf"};
  quantize_model(f.from, f.out, options).value();
  const io::archive to = io::archive::open(f.out).value();
  CHECK(to.metadata().string("quantize.imatrix.file").value() == "m.gguf");
  CHECK(to.metadata().string("quantize.imatrix.dataset").value() == "text");
  CHECK(to.metadata().integer("quantize.imatrix.entries_count").value() == 1);
  CHECK(to.metadata().integer("quantize.imatrix.chunks_count").value() == 3);
  m.entries["blk.0.attn_q.weight"] = {128, std::vector<float>(128, 2.0F), {1.0F}};
  CHECK(quantize_model(f.from, f.out, options).error().where == "tensor 'blk.0.attn_q.weight'");
  m.entries["blk.0.attn_q.weight"] = {256, std::vector<float>(256, -1.0F), {1.0F}};
  CHECK(quantize_model(f.from, f.out, options).error().code == errc::invalid_argument);
}

}  // namespace
