// Adapters beside the weights against models with the same changes in their weights.
#include "flywheel/model/adapter.hpp"

#include <fstream>
#include <nlohmann/json.hpp>

#include "flywheel/device/accelerator.hpp"
#include "flywheel/device/simulator.hpp"
#include "model/adapter_workshop.hpp"
#include "support/data.hpp"
#include "support/tiny_encoder.hpp"

using namespace flywheel;
using namespace flywheel::test;

TEST_CASE("An adapter beside the weights equals one in them", "[adapter]") {
  for (const dtype type : {dtype::f32, dtype::f16, dtype::bf16})
    for (const bool dora : {false, true}) {
      CAPTURE(to_string(type), dora);
      const workshop w;
      tiny_adapter a{every_product};
      a.type = type;
      a.dora = dora;
      a.rank = type == dtype::bf16 ? 11 : 4;
      const model merged = w.changed([&](auto& tensors) { merge_tiny_adapter(a, 0.75, w.base, tensors); });
      const auto ids = adapter_ids(70);
      const std::vector<float> want = all_logits(merged, ids);
      for (const char* isa : {"generic", ""}) {
        const model m = open_base(w.path, 1, isa);
        const adapter one = w.open(m, a);
        CHECK(logits_distance(all_logits(m, ids, {{one, 0.75F}}), want) < same_logits);
        CHECK(logits_distance(all_logits(m, ids), want) > another_model);
        CHECK(one.info().rank == a.rank);
        CHECK(one.info().weights == static_cast<std::int64_t>(every_product.size()));
        CHECK(one.info().bytes > 0);
        CHECK(one.info().alpha == a.alpha);
        CHECK(one.info().name == "tiny adapter");
      }
    }
}

TEST_CASE("Several adapters add up, and a scale of 0 is like none", "[adapter]") {
  const workshop w;
  tiny_adapter a{every_product}, b{{"blk.0.attn_q.weight", "blk.1.ffn_down.weight"}};
  b.seed = 9;
  b.rank = 3;
  const model m = open_base(w.path);
  const model merged = w.changed([&](auto& tensors) {
    merge_tiny_adapter(a, 0.5, w.base, tensors);
    merge_tiny_adapter(b, -1.25, w.base, tensors);
  });
  const adapter first = w.open(m, a), second = w.open(m, b);
  const auto ids = adapter_ids(20);
  CHECK(logits_distance(all_logits(m, ids, {{first, 0.5F}, {second, -1.25F}}), all_logits(merged, ids)) < same_logits);
  CHECK(all_logits(m, ids, {{first, 0}}) == all_logits(m, ids));
}

TEST_CASE("DoRA works with biases and beside other adapters", "[adapter]") {
  const workshop w(two_layer_model(), [](io::metadata&, std::vector<tiny_tensor>& tensors) {
    for (const char* name : {"blk.0.attn_q.bias", "blk.0.attn_output.bias"}) {
      tiny_tensor bias{{name, dtype::f32, {32}, 0}, {}};
      tiny_random random(3);
      for (int i = 0; i < 32; ++i) bias.values.push_back(random.normal());
      tensors.push_back(std::move(bias));
    }
  });
  tiny_adapter dora{every_product}, plain{{"blk.0.attn_q.weight", "blk.0.attn_output.weight"}};
  dora.dora = true;
  plain.seed = 8;
  const model m = open_base(w.path);
  const model merged = w.changed([&](auto& tensors) {
    merge_tiny_adapter(dora, 0.5, w.base, tensors);
    merge_tiny_adapter(plain, 1, w.base, tensors);
  });
  const auto ids = adapter_ids(9);
  const adapters both = {{w.open(m, dora), 0.5F}, {w.open(m, plain), 1}};
  CHECK(logits_distance(all_logits(m, ids, both), all_logits(merged, ids)) < same_logits);
}

TEST_CASE("Embedding rows and a tied head are changed one without the other", "[adapter]") {
  for (const bool tied : {true, false}) {
    CAPTURE(tied);
    const workshop w(two_layer_model(tied));
    const auto ids = adapter_ids(12);
    const model m = open_base(w.path);
    const tiny_adapter rows{{"token_embd.weight"}}, head{{"output.weight"}};
    // The same model with a head of its own tells the two apart.
    const auto with = [&](const tiny_adapter& a) {
      tiny_model apart = w.shape;
      apart.tied = false;
      const std::filesystem::path path = w.folder.path() / "apart.gguf";
      write_tiny_model(path, apart, [&](io::metadata&, std::vector<tiny_tensor>& tensors) {
        for (tiny_tensor& t : tensors)
          if (t.plan.name == "output.weight") t.values = weight_of(w.base, "output.weight").values;
        merge_tiny_adapter(a, 1, w.base, tensors);
      });
      return open_base(path);
    };
    for (const tiny_adapter& a : {rows, head}) {
      CAPTURE(a.weights[0]);
      const std::vector<float> got = all_logits(m, ids, {{w.open(m, a), 1}});
      CHECK(logits_distance(got, all_logits(with(a), ids)) < same_logits);
      CHECK(logits_distance(got, all_logits(m, ids)) > another_model);
    }
  }
}

TEST_CASE("Replaced matrices are kept as differences", "[adapter]") {
  const workshop w(two_layer_model(false));
  const auto ids = adapter_ids(12);
  const model m = open_base(w.path);
  tiny_adapter none;
  std::vector<tiny_tensor> whole;
  for (const char* name : {"token_embd.weight", "output.weight", "blk.0.ffn_up.weight", "blk.1.attn_output.weight"}) {
    tiny_tensor t = weight_of(w.base, name);
    tiny_random random(whole.size() + 40);
    for (float& x : t.values) x += 0.1F * random.normal();
    whole.push_back(std::move(t));
  }
  const std::filesystem::path path = w.folder.path() / "replaces.gguf";
  write_tensors(path, tiny_adapter_metadata(none), whole);
  const model other = w.changed([&](auto& tensors) {
    for (tiny_tensor& t : tensors)
      for (const tiny_tensor& r : whole)
        if (t.plan.name == r.plan.name) t = r;
  });
  const adapter a = adapter::open(m, path).value();
  CHECK(logits_distance(all_logits(m, ids, {{a, 1}}), all_logits(other, ids)) < same_logits);
  CHECK(logits_distance(all_logits(m, ids), all_logits(other, ids)) > another_model);
}

TEST_CASE("Parts of a fused matrix get their rows of B", "[adapter]") {
  // phi3's attn_qkv and ffn_up hold several matrices one above the other.
  const auto fuse = [](io::metadata&, std::vector<tiny_tensor>& tensors) {
    for (int layer = 0; layer < 2; ++layer) {
      const std::string block = "blk." + std::to_string(layer) + ".";
      const auto join = [&](const std::string& into, const std::vector<std::string>& parts) {
        tiny_tensor all{{block + into, dtype::f32, {}, 0}, {}};
        std::int64_t rows = 0, cols = 0;
        for (const std::string& part : parts) {
          const auto at = std::find_if(tensors.begin(), tensors.end(),
                                       [&](const tiny_tensor& t) { return t.plan.name == block + part; });
          all.values.insert(all.values.end(), at->values.begin(), at->values.end());
          rows += at->plan.dims[0];
          cols = at->plan.dims[1];
          tensors.erase(at);
        }
        all.plan.dims = {rows, cols};
        tensors.push_back(std::move(all));
      };
      join("attn_qkv.weight", {"attn_q.weight", "attn_k.weight", "attn_v.weight"});
    }
  };
  workshop w(two_layer_model());
  w.prepare = fuse;
  io::metadata ignored;
  fuse(ignored, w.base);
  write_tiny_model(w.path, w.shape, fuse);
  const tiny_adapter a{{"blk.0.attn_qkv.weight", "blk.1.attn_qkv.weight"}};
  tiny_adapter dora = a;
  dora.dora = true;
  const model m = open_base(w.path);
  const auto ids = adapter_ids(9);
  for (const tiny_adapter& one : {a, dora}) {
    const std::filesystem::path path = w.folder.path() / "merged.gguf";
    write_tiny_model(path, w.shape, [&](io::metadata& meta, std::vector<tiny_tensor>& tensors) {
      fuse(meta, tensors);
      merge_tiny_adapter(one, 1, w.base, tensors);
    });
    CHECK(logits_distance(all_logits(m, ids, {{w.open(m, one), 1}}), all_logits(open_base(path), ids)) < same_logits);
  }
}

TEST_CASE("Texts are embedded through adapters", "[adapter][embed]") {
  const std::vector<std::vector<token_id>> texts = {{5, 9, 40, 7}, {8}, {30, 31, 9}};
  embed_options how;
  how.kv_type = dtype::f32;
  how.n_batch = 3;
  const auto check = [&](const model& base, const model& merged, const adapter& a) {
    const auto plain = base.embed(texts, how).value().values, want = merged.embed(texts, how).value().values;
    embed_options with = how;
    with.adapters = {{a, 0.5F}, {a, 0.5F}};
    const auto got = base.embed(texts, with).value().values;
    CHECK(logits_distance(got, want) < same_logits);
    CHECK(logits_distance(plain, want) > another_model);
    with.adapters[1].scale = NAN;
    CHECK(base.embed(texts, with).error().where == "adapters[1]");
    with.adapters[1] = {};
    CHECK(base.embed(std::vector<std::string>{}, with).error().where == "adapters[1]");
  };
  SECTION("a decoder") {
    const workshop w;
    const tiny_adapter a{every_product};
    const model m = open_base(w.path);
    check(m, w.changed([&](auto& tensors) { merge_tiny_adapter(a, 1, w.base, tensors); }), w.open(m, a));
  }
  SECTION("an encoder") {
    const temp_folder folder;
    std::vector<tiny_tensor> base;
    write_tiny_encoder(folder / "base.gguf", {}, [&](io::metadata&, auto& tensors) { base = tensors; });
    tiny_adapter a{{"blk.0.attn_q.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"}};
    a.architecture = "bert";
    write_tiny_encoder(folder / "merged.gguf", {},
                       [&](io::metadata&, auto& tensors) { merge_tiny_adapter(a, 1, base, tensors); });
    write_tiny_adapter(folder / "adapter.gguf", a, base);
    const model m = open_base(folder / "base.gguf");
    check(m, open_base(folder / "merged.gguf"), adapter::open(m, folder / "adapter.gguf").value());
  }
}

TEST_CASE("A rank may be larger than the matrix", "[adapter]") {
  const workshop w;
  tiny_adapter a{every_product};
  a.rank = 150;
  const model m = open_base(w.path);
  const model merged = w.changed([&](auto& tensors) { merge_tiny_adapter(a, 1, w.base, tensors); });
  const auto ids = adapter_ids(11);
  CHECK(logits_distance(all_logits(m, ids, {{w.open(m, a), 1}}), all_logits(merged, ids)) < same_logits);
}

TEST_CASE("Results do not depend on chunks, threads and the way tokens come", "[adapter]") {
  tiny_model shape = two_layer_model();
  shape.weights = dtype::q8_0;
  const workshop w(shape);
  tiny_adapter a{every_product}, b{every_product};
  a.type = dtype::f16;
  b.seed = 7;
  b.dora = true;
  const auto ids = adapter_ids(120);
  std::vector<float> first;
  for (const unsigned threads : {1U, 2U, 3U}) {
    const model m = open_base(w.path, threads);
    const adapters used = {{w.open(m, a), 0.5F}, {w.open(m, b), 1}};
    for (const std::int32_t n_batch : {512, 25}) {
      CAPTURE(threads, n_batch);
      session_options options = exact(used);
      options.n_batch = n_batch;
      session s = m.new_session(options).value();
      s.prefill(ids).value();
      if (first.empty()) first = logits_copy(s);
      CHECK(logits_copy(s) == first);
      for (const std::size_t step : {1UL, 3UL, 8UL}) {  // one row, a few that everybody prepares, the most read once
        s.truncate(ids.size() - 8).value();
        for (std::size_t at = ids.size() - 8; at < ids.size(); at += step)
          s.prefill(std::span(ids).subspan(at, std::min(step, ids.size() - at))).value();
        CHECK(logits_copy(s) == first);
      }
    }
  }
}

TEST_CASE("What cannot run is refused by name", "[adapter]") {
  const workshop w;
  const model m = open_base(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  SECTION("adapters of another model, empty handles, scales that are no numbers") {
    const model twin = open_base(w.path);
    session s = twin.new_session(exact()).value();
    for (const adapter_use& use :
         {adapter_use{a, 1}, adapter_use{{}, 1}, adapter_use{w.open(twin, tiny_adapter{every_product}), NAN}}) {
      const auto refused = s.set_adapters({&use, 1});
      REQUIRE_FALSE(refused);
      CHECK(refused.error().code == errc::invalid_argument);
      CHECK(refused.error().where == "adapters[0]");
      CHECK(s.adapters().empty());
      CHECK_FALSE(twin.new_session(exact({use})));
    }
  }
  SECTION("norms") {
    tiny_tensor norm = weight_of(w.base, "blk.0.attn_norm.weight");
    const std::filesystem::path path = w.folder.path() / "norm.gguf";
    write_tensors(path, tiny_adapter_metadata({}), std::vector{norm});
    const error e = refusal_of(adapter::open(m, path));
    CHECK(e.code == errc::unsupported);
    CHECK(e.where.find("blk.0.attn_norm.weight") != std::string::npos);
    CHECK(e.message.find("merge") != std::string::npos);
  }
  SECTION("numbers that are not finite") {
    tiny_adapter one{{"blk.0.attn_q.weight"}};
    auto tensors = tiny_adapter_tensors(one, w.base);
    tensors[1].values[7] = INFINITY;
    const std::filesystem::path path = w.folder.path() / "infinite.gguf";
    write_tensors(path, tiny_adapter_metadata(one), tensors);
    const error e = refusal_of(adapter::open(m, path));
    CHECK(e.code == errc::malformed);
    CHECK(e.where.find("blk.0.attn_q.weight.lora_b") != std::string::npos);
  }
  SECTION("DoRA of rows without length") {
    tiny_adapter one{{"blk.0.attn_q.weight"}};
    one.dora = true;
    auto tensors = tiny_adapter_tensors(one, w.base);
    tiny_tensor& b = tensors[1];
    const tiny_tensor& a_factor = tensors[0];
    const workshop zero(two_layer_model(), [](io::metadata&, std::vector<tiny_tensor>& all) {
      for (tiny_tensor& t : all)
        if (t.plan.name == "blk.0.attn_q.weight") std::fill_n(t.values.begin() + 5 * 32, 32, 0.0F);
    });
    REQUIRE(a_factor.plan.dims[1] == 32);
    std::fill_n(b.values.begin() + 5 * one.rank, one.rank, 0.0F);
    const std::filesystem::path path = w.folder.path() / "zero.gguf";
    write_tensors(path, tiny_adapter_metadata(one), tensors);
    const error e = refusal_of(adapter::open(open_base(zero.path), path));
    CHECK(e.code == errc::malformed);
    CHECK(e.message.find("row 5 ") != std::string::npos);
    CHECK(e.where.find("blk.0.attn_q.weight.lora_magnitude") != std::string::npos);
  }
  SECTION("a base in another basis") {
    for (const char* key :
         {"flywheel.quantize.rotated", "flywheel.quantize.rotated_heads", "flywheel.quantize.scaled"}) {
      const workshop turned(two_layer_model(), [&](io::metadata& meta, auto&) { meta.set(key, true); });
      const error e = refusal_of(adapter::open(open_base(turned.path), w.write({every_product})));
      CHECK(e.code == errc::unsupported);
      CHECK(e.message.find(key) != std::string::npos);
      CHECK(e.message.find(turned.path.string()) != std::string::npos);
    }
  }
  SECTION("cancellation, and no model") {
    std::stop_source stop;
    stop.request_stop();
    CHECK(refusal_of(adapter::open(m, w.write({every_product}), {{}, stop.get_token()})).code == errc::cancelled);
    CHECK(refusal_of(adapter::open(model(), w.write({every_product}))).code == errc::invalid_argument);
  }
  SECTION("a model whose products run elsewhere") {
    const auto npu = device::simulated_npu::create("hexagon-sim").value();
    device::accelerator_options with;
    with.min_multiply_adds = 0;
    model_options options;
    options.devices = {device::make_accelerator(npu->table(), {}, with).value()};
    tiny_model shape = two_layer_model();
    shape.weights = dtype::q8_channel;
    const workshop there(shape);
    const model far = model::open(there.path, options).value();
    CHECK(refusal_of(adapter::open(far, there.write({every_product}))).code == errc::unsupported);
  }
}

TEST_CASE("The family's adapters give their golden logits and continuations", "[adapter]") {
  FLYWHEEL_REQUIRE_SHARED(family, "family");
  const model m = open_base(family / "models/tiny-base/gguf/tiny-base-f16.gguf");
  const auto golden = nlohmann::json::parse(std::ifstream(family / "golden/logits_and_greedy.json"));
  for (const char* name : {"legal", "tutoring", "telemetry"}) {
    const adapter a = adapter::open(m, family / "adapters" / name / (std::string(name) + "-lora-f16.gguf")).value();
    CHECK(a.info().rank == 8);
    const auto& wanted = golden["models"]["lora:" + std::string(name)];
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      CAPTURE(name, i);
      session s = m.new_session(exact({{a, 1}})).value();
      s.prefill(golden["prompts"][i]["ids"].get<std::vector<token_id>>()).value();
      CHECK(logits_distance(s.logits(), wanted[i]["logits_last"].get<std::vector<float>>()) < 1e-3);
      generate_options how;
      how.max_tokens = 40;
      how.sampler = sampler_options::greedy();
      how.ignore_eos = true;
      if (wanted[i]["greedy_smallest_top2_margin"].get<double>() > 2e-3)
        CHECK(s.generate(how).value().ids == wanted[i]["greedy_ids"].get<std::vector<token_id>>());
    }
  }
}

TEST_CASE("Each of the family's adapters foresees texts of its domain best", "[adapter]") {
  FLYWHEEL_REQUIRE_SHARED(family, "family");
  const model m = open_base(family / "models/tiny-base/gguf/tiny-base-f16.gguf");
  const auto golden = nlohmann::json::parse(std::ifstream(family / "golden/perplexity.json"))["models"];
  const std::vector<std::string> domains = {"legal", "tutoring", "telemetry"};
  adapters all;
  for (const std::string& domain : domains)
    all.push_back({adapter::open(m, family / "adapters" / domain / (domain + "-lora-f16.gguf")).value(), 1});
  session s = m.new_session(exact()).value();
  for (const std::string& domain : domains) {
    std::ifstream file(family / "text" / domain / "eval.txt");
    std::string text(4000, 0);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    std::vector<token_id> ids = m.tokenizer().encode(text).value();
    ids.resize(510);
    std::vector<double> nll;  // of the base, then with each adapter
    for (std::size_t i = 0; i <= all.size(); ++i) {
      s.set_adapters(i == 0 ? adapters{} : adapters{all[i - 1]}).value();
      double sum = 0;
      for (std::size_t begin = 0; begin < ids.size(); begin += 255) {
        s.clear();
        std::vector<token_id> window = {m.tokenizer().special().bos};
        window.insert(window.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                      ids.begin() + static_cast<std::ptrdiff_t>(begin + 255));
        const std::vector<float> scores = s.score(window).value();
        for (const float p : scores) sum -= static_cast<double>(p);
      }
      nll.push_back(sum / static_cast<double>(ids.size()));
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      CAPTURE(domain, domains[i]);
      const auto mean = [&](const std::string& name) { return golden[name][domain]["mean_nll"].get<double>(); };
      const double got = nll[i + 1] - nll[0], wanted = mean("lora:" + domains[i]) - mean("base");
      CHECK(got * wanted > 0);
      CHECK(std::abs(got - wanted) < 0.5);  // the beginning of a text is not all of it
      if (domain == domains[i]) CHECK(std::ranges::min(nll) == nll[i + 1]);
    }
  }
}
