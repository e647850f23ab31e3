// model::embed and model::rerank: packing, pooling, limits and failures, over a fake engine and over real ones.
#include <cmath>

#include "flywheel/model/model.hpp"
#include "model/fake_engine.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/failing_new.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_encoder.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

using lists = std::vector<std::vector<token_id>>;
using texts = std::vector<std::string>;

embed_options how(pooling pool, bool normalize = false, std::int32_t n_batch = 64) {
  embed_options o;
  o.pooling = pool;
  o.normalize = normalize;
  o.n_batch = n_batch;
  return o;
}

std::vector<float> row(const embeddings& e, std::size_t i) { return {e[i].begin(), e[i].end()}; }

double length_of(std::span<const float> v) {
  double squares = 0;
  for (const float x : v) squares += static_cast<double>(x) * static_cast<double>(x);
  return std::sqrt(squares);
}

/// Lists of many lengths, longer and shorter than a batch of 64.
lists some_lists() {
  lists all;
  for (const std::size_t n : {3UL, 200UL, 1UL, 64UL, 17UL, 65UL, 40UL, 2UL, 2UL, 2UL, 100UL})
    all.push_back(some_ids(n, n + all.size()));
  return all;
}

model open(const temp_folder& folder, const tiny_encoder& m, unsigned threads = 1) {
  write_tiny_encoder(folder / "encoder.gguf", m);
  context_options options;
  options.threads = threads;
  model_options with;
  with.context = context::create(std::move(options)).value();
  return model::open(folder / "encoder.gguf", with).value();
}

bool failed(const auto& r, errc code, std::string_view part) {
  return !r && r.error().code == code && r.error().to_string().find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("A decoder's rows are pooled, whatever the batch", "[embed]") {
  const fake_model m;
  const lists all = some_lists();
  const embeddings rows = m.handle.embed(all, how(pooling::none)).value();
  REQUIRE(rows.size() == all.size());
  REQUIRE(rows.width == 12);
  const embeddings first = m.handle.embed(all, how(pooling::cls)).value();
  const embeddings last = m.handle.embed(all, how(pooling::last)).value();
  const embeddings mean = m.handle.embed(all, how(pooling::mean)).value();
  const embeddings unit = m.handle.embed(all, how(pooling::mean, true)).value();
  for (std::size_t i = 0; i < all.size(); ++i) {
    INFO(i);
    const std::span<const float> own = rows[i];
    REQUIRE(own.size() == all[i].size() * 12);
    CHECK(row(first, i) == std::vector<float>(own.begin(), own.begin() + 12));
    CHECK(row(last, i) == std::vector<float>(own.end() - 12, own.end()));
    for (std::size_t c = 0; c < 12; ++c) {
      double sum = 0;
      for (std::size_t t = 0; t < all[i].size(); ++t) sum += static_cast<double>(own[t * 12 + c]);
      CHECK(static_cast<double>(mean[i][c]) == Approx(sum / static_cast<double>(all[i].size())).margin(1e-6));
      CHECK(static_cast<double>(unit[i][c]) ==
            Approx(static_cast<double>(mean[i][c]) / length_of(mean[i])).margin(1e-6));
    }
  }
  CHECK(m.handle.embed(all, how(pooling::automatic)).value().values == last.values);
  for (const std::int32_t n_batch : {1, 7, 1000})
    for (const pooling pool : {pooling::none, pooling::mean, pooling::last, pooling::cls})
      CHECK(m.handle.embed(all, how(pool, true, n_batch)).value().values ==
            m.handle.embed(all, how(pool, true)).value().values);
  for (std::size_t i = 0; i < all.size(); ++i)
    CHECK(row(m.handle.embed(lists{all[i]}, how(pooling::mean)).value(), 0) == row(mean, i));
  CHECK(m.handle.embed(lists{}).value().size() == 0);
}

TEST_CASE("Short texts share forward passes", "[embed]") {
  fake_model m;
  int passes = 0;
  m.engine->before_layer = [&](std::int32_t layer, const detail::chunk& c) -> result<void> {
    passes += layer == 0;
    CHECK(c.ids.size() <= 64);
    return {};
  };
  const lists many(32, some_ids(30));
  const embeddings e = m.handle.embed(many, how(pooling::mean)).value();
  CHECK(passes == 16);  // two at a time
  CHECK(row(e, 0) == row(e, 31));
}

TEST_CASE("Wrong arguments of embed name what is wrong", "[embed]") {
  const fake_model m;
  const lists good = {some_ids(5)};
  CHECK(failed(m.handle.embed(lists{some_ids(5), {}}), errc::invalid_argument, "text 1"));
  CHECK(failed(m.handle.embed(lists{{5, 320}}), errc::invalid_argument, "token 320"));
  CHECK(failed(m.handle.embed(lists{{-1}}), errc::invalid_argument, "token -1"));
  CHECK(failed(m.handle.embed(lists{some_ids(257)}), errc::context_full, "256"));
  CHECK(failed(m.handle.embed(good, how(static_cast<pooling>(9))), errc::invalid_argument, "pooling"));
  CHECK(failed(m.handle.embed(good, how(pooling::mean, true, 0)), errc::invalid_argument, "n_batch"));
  embed_options o;
  o.n_ctx = -1;
  CHECK(failed(m.handle.embed(good, o), errc::invalid_argument, "n_ctx"));
  o.n_ctx = 4;
  CHECK(failed(m.handle.embed(good, o), errc::context_full, "4 tokens"));
  o.truncate = true;
  CHECK(m.handle.embed(good, o).value().values ==
        m.handle.embed(lists{{good[0].begin(), good[0].begin() + 4}}).value().values);
  o = {};
  o.kv_type = dtype::q4_1;
  CHECK(failed(m.handle.embed(good, o), errc::invalid_argument, ""));
  CHECK(failed(model().embed(good), errc::invalid_argument, "model"));
  CHECK(failed(model().rerank("a", texts{"b"}), errc::invalid_argument, "model"));
  fake_shape bare;
  bare.vocabulary = false;
  CHECK(failed(fake_model(bare).handle.embed(texts{"a"}), errc::unsupported, "vocabulary"));
  CHECK(failed(m.handle.rerank("a", texts{"b"}), errc::unsupported, ""));
}

TEST_CASE("Embedding can be watched and cancelled", "[embed]") {
  fake_model m;
  const lists all = some_lists();
  std::uint64_t done = 0, total = 0;
  embed_options o = how(pooling::mean);
  o.control.progress = [&](std::uint64_t d, std::uint64_t t, std::string_view) { done = d, total = t; };
  REQUIRE(m.handle.embed(all, o));
  CHECK(done == 496);
  CHECK(total == 496);
  for (int at = 0; at < 6; ++at) {
    std::stop_source stop;
    m.engine->before_layer = [&, count = 0](std::int32_t, const detail::chunk&) mutable -> result<void> {
      if (count++ == at) stop.request_stop();
      return {};
    };
    o.control.stop = stop.get_token();
    CHECK(failed(m.handle.embed(all, o), errc::cancelled, ""));
  }
}

TEST_CASE("Embedding survives a failing operator new", "[embed]") {
  const fake_model m;
  const lists all = some_lists();
  const embeddings want = m.handle.embed(all, how(pooling::mean)).value();
  std::uint64_t failures = 0;
  for (std::uint64_t n = 0;; ++n) {
    bool hit = false;
    result<embeddings> r = error{errc::internal, "not run", {}};
    {
      const fail_allocations guard(n, true);
      r = m.handle.embed(all, how(pooling::mean));
      hit = guard.failed();
    }
    if (!hit) {
      REQUIRE(r);
      CHECK(r->values == want.values);
      break;
    }
    ++failures;
    if (!r) CHECK(r.error().code == errc::out_of_memory);
  }
  CHECK(failures > 5);
}

TEST_CASE("An encoder embeds texts, packed or alone, with any threads", "[embed]") {
  const temp_folder folder;
  tiny_encoder m;
  m.nomic = GENERATE(false, true);
  const model loaded = open(folder, m);
  const texts all = {"a b", "hello world", "x", "the quick brown fox jumps over the lazy dog", "a b"};
  const embeddings packed = loaded.embed(all).value();
  REQUIRE(packed.size() == 5);
  REQUIRE(packed.width == 32);
  CHECK(row(packed, 0) == row(packed, 4));
  CHECK(row(packed, 0) != row(packed, 1));
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(length_of(packed[i]) == Approx(1).epsilon(1e-5));
    CHECK(row(loaded.embed(texts{all[i]}).value(), 0) == row(packed, i));
  }
  CHECK(loaded.embed(all, how(pooling::automatic, true, 1)).value().values == packed.values);
  CHECK(open(folder, m, 3).embed(all).value().values == packed.values);
  // The file says mean.
  CHECK(loaded.embed(all, how(pooling::mean, true)).value().values == packed.values);
  const lists ids = {loaded.tokenizer().encode("a b", {.add_special = true}).value()};
  CHECK(row(loaded.embed(ids).value(), 0) == row(packed, 0));
}

TEST_CASE("An encoder takes no more than its positions, and keeps the end when it truncates", "[embed]") {
  const temp_folder folder;
  const model loaded = open(folder, {});
  std::string text;
  for (int i = 0; i < 60; ++i) text += "ab ";  // two tokens each
  embed_options o;
  o.n_ctx = 1000;
  CHECK(failed(loaded.embed(texts{text}, o), errc::context_full, "96 tokens"));
  o.truncate = true;
  const embeddings cut = loaded.embed(texts{text}, o).value();
  std::vector<token_id> ids = loaded.tokenizer().encode(text, {.add_special = true}).value();
  ids.resize(95);
  ids.push_back(3);  // [SEP]
  CHECK(row(cut, 0) == row(loaded.embed(lists{ids}).value(), 0));
}

TEST_CASE("Encoders cannot continue texts, and decoders are not asked without a form", "[embed]") {
  const temp_folder folder;
  const model loaded = open(folder, {});
  CHECK(failed(loaded.new_session(), errc::unsupported, "model::embed"));
  CHECK(failed(loaded.rerank("a", texts{"b"}), errc::unsupported, "classification head"));
  const footprint sizes = model::footprint(io::archive::open(folder / "encoder.gguf").value()).value();
  CHECK(sizes.kv == 0);
  CHECK(sizes.arena > 0);
  write_tiny_encoder(folder / "odd.gguf", {},
                     [](io::metadata& meta, auto&) { meta.set("bert.pooling_type", std::uint32_t{17}); });
  CHECK(failed(model::open(folder / "odd.gguf").value().embed(texts{"a"}), errc::malformed, "pooling_type"));
}

TEST_CASE("A reranker scores pairs with its head", "[embed]") {
  const temp_folder folder;
  tiny_encoder m;
  m.scores = 1;
  m.pooling = 4;
  const model loaded = open(folder, m);
  const texts documents = {"fox", "the dog", "a longer document of many words", "fox"};
  const std::vector<float> scores = loaded.rerank("what is a fox", documents).value();
  REQUIRE(scores.size() == 4);
  CHECK(scores[0] == scores[3]);
  CHECK(scores[0] != scores[1]);
  CHECK(loaded.rerank("another question", documents).value() != scores);
  CHECK(loaded.rerank("what is a fox", texts{documents[2]}).value()[0] == scores[2]);

  // The head, written down: tanh(row W^T + b) V^T + c over the first token's row.
  const io::archive file = io::archive::open(folder / "encoder.gguf").value();
  const auto read = [&](const char* name) {
    const io::tensor_info& t = *file.find(name);
    std::vector<float> values(static_cast<std::size_t>(t.dims.elements()));
    formats::decode(file.view(t).value(), values).value();
    return values;
  };
  const auto w = read("cls.weight"), b = read("cls.bias"), v = read("cls.output.weight"), c = read("cls.output.bias");
  std::vector<token_id> ids = {2};
  for (const char* part : {"what is a fox", "fox"}) {
    const auto tokens = loaded.tokenizer().encode(part).value();
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    ids.push_back(3);
  }
  const embeddings plain = loaded.embed(lists{ids}, how(pooling::cls)).value();
  const auto head = [&](std::span<const float> x) {
    double score = c[0];
    for (std::size_t i = 0; i < 32; ++i) {
      double sum = b[i];
      for (std::size_t j = 0; j < 32; ++j) sum += static_cast<double>(w[i * 32 + j]) * static_cast<double>(x[j]);
      score += std::tanh(sum) * static_cast<double>(v[i]);
    }
    return score;
  };
  // Given as ids, all tokens are of the first type; rerank tells the document's tokens apart.
  const embeddings ranked = loaded.embed(lists{ids}).value();
  REQUIRE(ranked.width == 1);
  CHECK(static_cast<double>(ranked.values[0]) == Approx(head(plain[0])).epsilon(1e-4));
  CHECK(ranked.values[0] != scores[0]);
  m.scores = 3;
  CHECK(failed(open(folder, m).rerank("a", texts{"b"}), errc::unsupported, "3 classes"));
}

TEST_CASE("Tables of one row may be stored as vectors", "[embed]") {
  const temp_folder folder;
  tiny_encoder m;
  m.scores = 1;
  // 2: both tables are matrices, 1: vectors, 0: no table of types.
  const auto scores = [&](std::int64_t rank) {
    write_tiny_encoder(folder / "m.gguf", m, [&](io::metadata&, std::vector<tiny_tensor>& list) {
      if (rank == 0) std::erase_if(list, [](const tiny_tensor& t) { return t.plan.name == "token_types.weight"; });
      for (tiny_tensor& t : list) {
        if (t.plan.name != "token_types.weight" && t.plan.name != "cls.output.weight") continue;
        t.values.resize(32);
        t.plan.dims = rank == 1 ? shape{32} : shape{1, 32};
      }
    });
    return model::open(folder / "m.gguf").value().rerank("what is a fox", texts{"fox", "the dog"}).value();
  };
  const std::vector<float> matrices = scores(2);
  CHECK(scores(1) == matrices);
  CHECK(scores(0) != matrices);
}

TEST_CASE("A reranker cuts documents, not queries", "[embed]") {
  const temp_folder folder;
  tiny_encoder m;
  m.scores = 1;
  const model loaded = open(folder, m);
  std::string document;
  for (int i = 0; i < 60; ++i) document += "ab ";
  CHECK(failed(loaded.rerank("query", texts{document}), errc::context_full, "text 0"));
  embed_options o;
  o.truncate = true;
  const auto cut = loaded.rerank("query", texts{document}, o).value();
  CHECK(cut == loaded.rerank("query", texts{document + "more"}, o).value());
  CHECK(failed(loaded.rerank(document, texts{"a"}, o), errc::context_full, ""));
}

TEST_CASE("A decoder ranks by yes against no", "[embed]") {
  const temp_folder folder;
  tiny_model m;
  m.context = 96;
  write_tiny_model(folder / "m.gguf", m, [](io::metadata& meta, auto&) {
    auto pieces = tiny_pieces(320);
    pieces[318] = "yes";
    pieces[319] = "no";
    meta.set("tokenizer.ggml.tokens", std::move(pieces));
    meta.set("tokenizer.chat_template.rerank", std::string("q {query} d {document} <s>"));
  });
  const model loaded = model::open(folder / "m.gguf").value();
  const texts documents = {"the hell", "and {query} on"};
  const std::vector<float> scores = loaded.rerank("hello", documents).value();
  session s = loaded.new_session().value();
  for (std::size_t i = 0; i < 2; ++i) {
    s.clear();
    s.prefill(loaded.tokenizer().encode("q hello d " + documents[i] + " <s>", {.parse_special = true}).value()).value();
    const double yes = std::exp(static_cast<double>(s.logits()[318])),
                 no = std::exp(static_cast<double>(s.logits()[319]));
    CHECK(static_cast<double>(scores[i]) == Approx(yes / (yes + no)).epsilon(1e-4));
  }
  std::string document;
  for (int i = 0; i < 200; ++i) document += "hello ";
  CHECK(failed(loaded.rerank("hello", texts{document}), errc::context_full, ""));
  embed_options o;
  o.truncate = true;
  CHECK(loaded.rerank("hello", texts{document}, o));
}

TEST_CASE("The reference encoder's vectors are met", "[embed]") {
  FLYWHEEL_REQUIRE_SHARED(path, "conformance/architectures/bert.gguf");
  const io::archive expected = io::archive::open(path.parent_path() / "bert.expected.safetensors").value();
  const io::tensor_info& t = *expected.find("a.embedding_f64");
  std::vector<float> want(static_cast<std::size_t>(t.dims.elements()));
  formats::decode(expected.view(t).value(), want).value();
  const lists ids = {
      {2, 159, 153, 244, 91, 143, 179, 135, 426, 295, 308, 99, 66, 114, 343, 249, 107, 334, 42, 400, 479, 337, 474, 3}};
  const embeddings got = model::open(path).value().embed(ids, how(pooling::automatic)).value();
  double worst = 0, squares = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(got.values[i]) - static_cast<double>(want[i])));
    squares += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  CHECK(worst / std::sqrt(squares / static_cast<double>(want.size())) < 1e-3);
}
