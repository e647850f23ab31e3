// Importance matrices: what is collected, and both forms of files.
#include "flywheel/quant/importance.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "flywheel/evaluate/compare.hpp"
#include "flywheel/io/writer.hpp"
#include "support/catch.hpp"
#include "support/recording_observer.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::test;
using quant::importance_matrix;

namespace {

std::string long_text() {
  std::string text;
  tiny_random random(11);
  for (int i = 0; i < 400; ++i) {
    const auto length = static_cast<int>(2 + random.uniform() * 5);
    for (int j = 0; j < length; ++j) text += static_cast<char>('a' + static_cast<int>(random.uniform() * 26));
    text += ' ';
  }
  return text;
}

context with_threads(unsigned threads) {
  context_options options;
  options.threads = threads;
  return context::create(options).value();
}

/// The older form, byte by byte.
class dat_file {
 public:
  dat_file& number(std::int32_t n) {
    bytes.append(reinterpret_cast<const char*>(&n), sizeof n);
    return *this;
  }
  dat_file& text(const std::string& s) {
    number(static_cast<std::int32_t>(s.size()));
    bytes += s;
    return *this;
  }
  dat_file& floats(const std::vector<float>& values) {
    number(static_cast<std::int32_t>(values.size()));
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    return *this;
  }
  [[nodiscard]] result<importance_matrix> read() const {
    return importance_matrix::read(std::as_bytes(std::span(bytes)));
  }
  std::string bytes;
};

}  // namespace

TEST_CASE("An importance matrix holds the sums of squares of what went into each weight") {
  const temp_folder folder;
  tiny_model facts;
  facts.layers = 2;
  facts.experts = 6;
  write_tiny_model(folder / "m.gguf", facts);
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  const std::string text = long_text();
  quant::importance_options options;
  options.chunk = 48;
  options.max_chunks = 5;
  options.dataset = "words";
  options.context = with_threads(1);
  const importance_matrix made = quant::collect_importance(file, text, options).value();
  CHECK(made.chunks == 5);
  CHECK(made.chunk_size == 48);
  CHECK(made.datasets == std::vector<std::string>{"words"});

  const auto seen = std::make_shared<recording_observer>();
  model_options with;
  with.context = options.context;
  with.observer = seen;
  const model m = model::open(file, with).value();
  session s = m.new_session().value();
  const auto windows =
      evaluate::cut_windows(m.tokenizer(), text, {.ctx = 48, .max_windows = 5, .spread = true}).value();
  for (const evaluate::window& w : windows) {
    s.clear();
    s.prefill_rows(w.ids, 1, [](std::size_t, std::span<const float>) -> result<void> { return {}; }).value();
  }
  std::size_t tensors = 0;
  for (std::uint32_t p = 0; p < seen->points.size(); ++p)
    for (const std::string& name : seen->points[p].weights) {
      INFO(name);
      REQUIRE(made.entries.contains(name));
      ++tensors;
      const quant::importance_entry& e = made.entries.at(name);
      const auto cols = static_cast<std::size_t>(seen->points[p].cols);
      const auto matrices = static_cast<std::size_t>(std::max<std::int64_t>(1, seen->points[p].n_experts));
      REQUIRE(e.sums.size() == matrices * cols);
      REQUIRE(e.counts.size() == matrices);
      const std::vector<float> means = made.of(name);
      for (std::size_t x = 0; x < matrices; ++x) {
        const std::vector<float>& rows = seen->rows[{p, static_cast<std::int64_t>(x)}];
        CHECK(e.counts[x] == static_cast<float>(rows.size() / cols));
        for (std::size_t c = 0; c < cols; ++c) {
          double sum = 0;
          for (std::size_t i = c; i < rows.size(); i += cols)
            sum += static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
          CHECK(static_cast<double>(e.sums[x * cols + c]) == Approx(sum).epsilon(1e-5));
          CHECK(static_cast<double>(means[x * cols + c]) ==
                Approx(rows.empty() ? 1 : sum / static_cast<double>(rows.size() / cols)).epsilon(1e-5));
        }
      }
    }
  CHECK(made.entries.size() == tensors);
  CHECK(made.entries.at("blk.0.attn_q.weight").counts[0] == 5 * 48);
  CHECK(made.entries.at("token_embd.weight").counts[0] == 5 * 48);  // the head
  const auto& experts = made.entries.at("blk.1.ffn_down_exps.weight").counts;
  CHECK(std::accumulate(experts.begin(), experts.end(), 0.0F) == 2 * 5 * 48);
  CHECK(made.of("no.such").empty());

  options.context = with_threads(3);
  const importance_matrix again = quant::collect_importance(file, text, options).value();
  for (const auto& [name, e] : made.entries) {
    CHECK(again.entries.at(name).sums == e.sums);
    CHECK(again.entries.at(name).counts == e.counts);
  }
}

TEST_CASE("Collecting reports progress, can be cancelled, and says what is wrong") {
  const temp_folder folder;
  write_tiny_model(folder / "m.gguf", tiny_model{});
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  quant::importance_options options;
  options.chunk = 32;
  options.context = with_threads(1);
  std::stop_source stop;
  std::uint64_t last = 0, all = 0;
  options.control.stop = stop.get_token();
  options.control.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) {
    if (what != "importance") return;
    last = done;
    all = total;
    if (done == 3) stop.request_stop();
  };
  const std::string text = long_text();
  const auto cancelled = quant::collect_importance(file, text, options);
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code == errc::cancelled);
  CHECK(last == 3);
  CHECK(all > 3);
  options.control = {};
  CHECK(quant::collect_importance(file, "short", options).error().code == errc::invalid_argument);
  write_tiny_model(folder / "mute.gguf", {.vocabulary = false});
  CHECK(quant::collect_importance(io::archive::open(folder / "mute.gguf").value(), text, options).error().code ==
        errc::unsupported);
}

TEST_CASE("An importance matrix comes back from its file as it was") {
  const temp_folder folder;
  importance_matrix m;
  m.datasets = {"a.txt", "b.txt"};
  m.chunks = 7;
  m.chunk_size = 512;
  m.entries["blk.0.attn_q.weight"] = {3, {1, 2, 3}, {4}};
  m.entries["blk.0.ffn_up_exps.weight"] = {2, {1, 2, 0, 0, 5, 6}, {2, 0, 3}};
  m.write(folder / "i.gguf").value();

  const io::archive file = io::archive::open(folder / "i.gguf").value();
  CHECK(*file.metadata().string("general.type") == "imatrix");
  CHECK(*file.metadata().integer("imatrix.chunk_count") == 7);
  CHECK(*file.metadata().integer("imatrix.chunk_size") == 512);
  CHECK(file.metadata().strings("imatrix.datasets")->size() == 2);
  CHECK(file.find("blk.0.ffn_up_exps.weight.in_sum2")->dims == shape{3, 2});  // ne = [2, 3]
  CHECK(file.find("blk.0.ffn_up_exps.weight.counts")->dims == shape{3, 1});
  CHECK(file.find("blk.0.attn_q.weight.in_sum2")->dims == shape{1, 3});
  CHECK(file.find("blk.0.attn_q.weight.counts")->type == dtype::f32);

  const importance_matrix got = importance_matrix::read(folder / "i.gguf").value();
  CHECK(got.datasets == m.datasets);
  CHECK(got.chunks == 7);
  CHECK(got.chunk_size == 512);
  REQUIRE(got.entries.size() == 2);
  for (const auto& [name, e] : m.entries) {
    CHECK(got.entries.at(name).cols == e.cols);
    CHECK(got.entries.at(name).sums == e.sums);
    CHECK(got.entries.at(name).counts == e.counts);
  }
  CHECK(got.of("blk.0.ffn_up_exps.weight") == std::vector<float>{0.5F, 1, 1, 1, 5.0F / 3, 2});

  m.entries["bad"] = {3, {1, 2}, {4}};
  const auto refused = m.write(folder / "bad.gguf");
  REQUIRE(!refused);
  CHECK(refused.error().where == "bad");
  CHECK(!std::filesystem::exists(folder / "bad.gguf"));
  CHECK(importance_matrix::read(folder / "none").error().code == errc::not_found);
}

TEST_CASE("The older form is read, with and without what follows its entries") {
  dat_file f;
  f.number(2).text("blk.0.attn_q.weight").number(4).floats({4, 8}).text("b").number(0).floats({3});
  for (const bool whole : {false, true}) {
    dat_file g = f;
    if (whole) g.number(9).text("words.txt");
    const importance_matrix m = g.read().value();
    REQUIRE(m.entries.size() == 2);
    CHECK(m.of("blk.0.attn_q.weight") == std::vector<float>{1, 2});
    CHECK(m.of("b") == std::vector<float>{3});  // no calls count as one
    CHECK(m.chunks == (whole ? 9U : 0U));
    CHECK(m.datasets.size() == (whole ? 1U : 0U));
  }
}

TEST_CASE("Broken importance matrices are refused with words") {
  const auto refused = [](const result<importance_matrix>& r, const std::string& word) {
    REQUIRE(!r);
    INFO(r.error().to_string());
    CHECK(r.error().code == errc::malformed);
    CHECK(r.error().to_string().find(word) != std::string::npos);
  };
  refused(dat_file().read(), "ends inside the number of entries");
  refused(dat_file().number(0).read(), "claims no entries");
  refused(dat_file().number(-5).read(), "claims no entries");
  refused(dat_file().number(1).number(1 << 30).read(), "length");
  refused(dat_file().number(1).number(-1).read(), "length");
  refused(dat_file().number(1).text("w").number(1).number(-1).read(), "not possible");
  refused(dat_file().number(1).text("w").number(-1).floats({1}).read(), "not possible");
  refused(dat_file().number(1).text("w").number(1).number(1 << 30).read(), "sums of a tensor");
  refused(dat_file().number(1).text("w").number(1).floats({-1}).read(), "negative or not finite");
  refused(dat_file().number(1).text("w").number(1).floats({std::nanf("")}).read(), "negative or not finite");
  refused(dat_file().number(2).text("w").number(1).floats({1}).text("w").number(1).floats({1}).read(), "twice");

  const temp_folder folder;
  const auto written = [&](const io::metadata& meta, const std::vector<tiny_tensor>& tensors) {
    write_tensors(folder / "x.gguf", meta, tensors);
    return importance_matrix::read(folder / "x.gguf");
  };
  io::metadata meta;
  refused(written(meta, {{{"w.in_sum2", dtype::f32, {1, 2}, 0}, {1, 2}}}), "general.type");
  meta.set("general.type", std::string("imatrix"));
  refused(written(meta, {{{"w.other", dtype::f32, {1, 2}, 0}, {1, 2}}}), "holds no sums");
  refused(written(meta, {{{"w.in_sum2", dtype::f32, {1, 2}, 0}, {1, 2}}}), "no counts");
  refused(written(meta, {{{"w.in_sum2", dtype::f32, {2, 2}, 0}, {1, 2, 3, 4}},
                         {{"w.counts", dtype::f32, {3, 1}, 0}, {1, 1, 1}}}),
          "3 counts");
  refused(written(meta, {{{"w.in_sum2", dtype::f16, {1, 2}, 0}, {1, 2}}, {{"w.counts", dtype::f32, {1, 1}, 0}, {1}}}),
          "not f32");
  refused(written(meta, {{{"w.in_sum2", dtype::f32, {1, 2}, 0}, {1, -2}}, {{"w.counts", dtype::f32, {1, 1}, 0}, {1}}}),
          "negative");
}
