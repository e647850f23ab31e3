// Whole models by error feedback, with moved scales and rotated: files that open, and the same bytes however they came
// about.
#include <stop_token>

#include "flywheel/model/model.hpp"
#include "flywheel/quant/quantize_model.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;
using quant::method;
using quant::quantize_model;
using quant::quantize_options;

/// A model and what quantizing it needs.
struct method_bench {
  temp_folder folder;
  std::filesystem::path in = folder / "a.gguf";
  io::archive from;
  std::string text;

  explicit method_bench(std::int32_t experts) {
    write_tiny_model(in, {.hidden = 64, .layers = 1, .ffn = 96, .experts = experts});
    from = io::archive::open(in).value();
    for (int i = 0; i < 160; ++i)
      for (int j = 0; j < 6; ++j)
        text += static_cast<char>('a' + (i * i + 7 * j * j + i * j) % 26), text += j % 3 ? "" : " ";
  }
  [[nodiscard]] quantize_options options(method how, unsigned threads = 2) const {
    quantize_options made{.type = "Q4_0", .pure = true};
    made.method = how;
    made.calibration = {{"text", text}};
    made.calibration_ctx = 32;
    context_options shared;
    shared.threads = threads;
    made.context = context::create(std::move(shared)).value();
    return made;
  }
};

TEST_CASE("Neither threads nor interruptions show in what methods write", "[quant][methods]") {
  struct {
    method how;
    std::uint64_t memory;
    bool rotate;
    std::int32_t experts;
  } const cases[] = {{method::gptq, 1 << 30, false, 0},
                     {method::gptq, 0, true, 0},
                     {method::gptq, 0, false, 4},
                     {method::awq, 0, false, 0},
                     {method::search, 0, true, 0}};
  for (const auto& c : cases) {
    CAPTURE(to_string(c.how), c.memory, c.rotate, c.experts);
    const method_bench bench(c.experts);
    const auto options = [&](unsigned threads) {
      quantize_options made = bench.options(c.how, threads);
      made.memory = c.memory;
      made.rotate = c.rotate;
      return made;
    };
    quantize_model(bench.from, bench.folder / "whole", options(1)).value();
    const io::archive whole = io::archive::open(bench.folder / "whole").value();
    CHECK(whole.find("blk.0.attn_q.weight")->type == dtype::q4_0);
    CHECK(whole.metadata().contains("flywheel.quantize.rotated") == c.rotate);
    CHECK(model::open(bench.folder / "whole"));
    quantize_options plain = bench.options(method::nearest, 1);
    quantize_model(bench.from, bench.folder / "nearest", plain).value();
    CHECK(read_bytes(bench.folder / "nearest") != read_bytes(bench.folder / "whole"));

    for (const int calls : {2, 7}) {
      std::stop_source stop;
      quantize_options stopped = options(2);
      stopped.control.stop = stop.get_token();
      stopped.control.progress = [&stop, left = calls](std::uint64_t, std::uint64_t, std::string_view) mutable {
        if (--left == 0) stop.request_stop();
      };
      const auto done = quantize_model(bench.from, bench.folder / "b", stopped);
      REQUIRE_FALSE(done);
      CHECK(done.error().code == errc::cancelled);
    }
    CHECK(quantize_model(bench.from, bench.folder / "b", options(2)).value().resumed > 0);
    CHECK(read_bytes(bench.folder / "whole") == read_bytes(bench.folder / "b"));
  }
}

}  // namespace
