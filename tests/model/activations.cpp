// What int8 activations cost in quality: the trained model with its matrices in a quantized format, run by the int8
// kernels, against the same weights decoded to f32, which run with exact activations.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/io/writer.hpp"
#include "flywheel/model/model.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

namespace tolerance {
/// Mean KL divergence of the predictions, in nats. Rounding to 8 bits gives 0.00003 to 0.0005 on trained models; a
/// format's own rounding gives 0.0002 (Q8_0) to 0.02 (Q4_0).
constexpr double activation_kl = 0.001;
/// Perplexity over perplexity with exact activations, over thousands of tokens. 8-bit weights have little error of
/// their own to hide it.
constexpr double perplexity = 0.002;
constexpr double perplexity_q8_0 = 0.0005;  // seen: 0.00016 with x86_avx512vnni, 0.00015 with x86_avx2
}  // namespace tolerance

std::vector<float> values_of(const io::archive& file, const io::tensor_info& tensor) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
  file.read(tensor, 0, bytes).value();
  std::vector<float> values(static_cast<std::size_t>(tensor.dims.elements()));
  formats::find_decoder(tensor.type)(bytes.data(), tensor.dims.elements(), values.data());
  return values;
}

/// The model with its matrices rounded to `type`, kept so or decoded again.
void write_rounded(const io::archive& source, dtype type, bool decoded, const std::filesystem::path& to) {
  std::vector<io::tensor_plan> plan;
  for (const io::tensor_info& t : source.tensors())
    plan.push_back({t.name, t.dims.rank() == 2 && !decoded ? type : dtype::f32, t.dims, 0});
  io::writer target = io::writer::create(to, io::container::gguf, source.metadata(), plan).value();
  for (const io::tensor_info& t : source.tensors()) {
    std::vector<float> values = values_of(source, t);
    const std::int64_t k = t.dims.cols();
    std::vector<std::byte> row(row_bytes(type, t.dims.rank() == 2 ? k : 0));
    for (std::int64_t i = 0; i < t.dims.elements(); i += k) {
      if (t.dims.rank() == 2) {
        formats::find_encoder(type)(values.data() + i, k, row.data());
        if (decoded)
          formats::find_decoder(type)(row.data(), k, values.data() + i);
        else
          target.write(row).value();
      }
      if (decoded || t.dims.rank() != 2)
        target.write(std::as_bytes(std::span(values.data() + i, static_cast<std::size_t>(k)))).value();
    }
  }
  target.finish().value();
}

/// Log-probabilities [window, position, n_vocab] of the first windows of 255 tokens of a text, each after BOS.
struct predictions {
  std::vector<token_id> ids;
  std::vector<double> logprobs;
  double perplexity = 0;
};

predictions predict(const std::filesystem::path& path, activation_scales scales, const std::string& text,
                    std::size_t windows) {
  context_options options;
  options.activations = scales;
  options.threads = 1;  // a model this small gains nothing from more
  const model m = model::open(path, {context::create(options).value(), {}}).value();
  const std::vector<token_id> ids = m.tokenizer().encode(text).value();
  session s = m.new_session().value();
  predictions out;
  const auto vocab = static_cast<std::size_t>(m.info().n_vocab);
  double nll = 0;
  std::size_t scored = 0;
  for (std::size_t begin = 0; windows > 0 && begin < ids.size(); begin += 255, --windows) {
    std::vector<token_id> window = {m.tokenizer().special().bos};
    for (std::size_t i = begin; i < std::min(ids.size(), begin + 255); ++i) window.push_back(ids[i]);
    s.clear();
    s.prefill_rows(window, 1, [&](std::size_t at, std::span<const float> logits) -> result<void> {
       const double peak = *std::max_element(logits.begin(), logits.end());
       double sum = 0;
       for (const float x : logits) sum += std::exp(static_cast<double>(x) - peak);
       const double norm = peak + std::log(sum);
       for (const float x : logits) out.logprobs.push_back(static_cast<double>(x) - norm);
       if (at + 1 < window.size()) {
         nll -= out.logprobs[out.logprobs.size() - vocab + static_cast<std::size_t>(window[at + 1])];
         ++scored;
       }
       return {};
     }).value();
    out.ids.insert(out.ids.end(), window.begin(), window.end());
  }
  out.perplexity = std::exp(nll / static_cast<double>(scored));
  return out;
}

/// Mean over positions of sum_t p(t) (log p(t) - log q(t)).
double mean_kl(const predictions& p, const predictions& q) {
  REQUIRE(p.ids == q.ids);
  double sum = 0;
  for (std::size_t i = 0; i < p.logprobs.size(); ++i) sum += std::exp(p.logprobs[i]) * (p.logprobs[i] - q.logprobs[i]);
  return sum / static_cast<double>(p.ids.size());
}

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

const dtype rounded_types[] = {dtype::q8_0, dtype::q4_0, dtype::q4_1, dtype::q5_0, dtype::q5_1};

}  // namespace

TEST_CASE("int8 activations change the trained model's predictions hardly at all", "[activations]") {
  const temp_folder folder;
  const io::archive source = io::archive::open(source_file("examples/models/tiny-base-q8_0.gguf")).value();
  const std::string text = contents(source_file("examples/sample.txt"));
  for (const dtype type : rounded_types) {
    CAPTURE(to_string(type));
    write_rounded(source, type, true, folder / "exact.gguf");
    write_rounded(source, type, false, folder / "rounded.gguf");
    const predictions exact = predict(folder / "exact.gguf", activation_scales::automatic, text, 2);
    for (const auto scales : {activation_scales::per_block, activation_scales::power_of_two}) {
      const double kl = mean_kl(exact, predict(folder / "rounded.gguf", scales, text, 2));
      CAPTURE(static_cast<int>(scales));
      CHECK(kl <= tolerance::activation_kl);
      CHECK(kl >= 0);
    }
  }
}

TEST_CASE("perplexity with the activations that a format gets by default is that of exact ones", "[activations]") {
#if FLYWHEEL_SANITIZED
  WARN("skipped: takes minutes under sanitizers");
#else
  FLYWHEEL_REQUIRE_SHARED(path, "family/models/tiny-base/gguf/tiny-base-f16.gguf");
  const temp_folder folder;
  const io::archive source = io::archive::open(path).value();
  for (const dtype type : {dtype::q8_0, dtype::q4_0}) {
    write_rounded(source, type, true, folder / "exact.gguf");
    write_rounded(source, type, false, folder / "rounded.gguf");
    // The texts together: on one of them alone chance decides.
    double exact = 0, rounded = 0;  // log perplexities
    for (const char* domain : {"general", "legal", "tutoring", "telemetry"}) {
      const std::string text = contents(shared_data("family/text/" + std::string(domain) + "/eval.txt"));
      exact += std::log(predict(folder / "exact.gguf", activation_scales::automatic, text, 12).perplexity) / 4;
      rounded += std::log(predict(folder / "rounded.gguf", activation_scales::automatic, text, 12).perplexity) / 4;
    }
    CAPTURE(to_string(type), exact, rounded);
    CHECK(std::exp(rounded - exact) <= 1 + (type == dtype::q8_0 ? tolerance::perplexity_q8_0 : tolerance::perplexity));
  }
#endif
}
