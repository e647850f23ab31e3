// Adapters beside the weights against models with the same changes in their weights, and what users may rely on.
#include "flywheel/model/adapter.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "flywheel/device/accelerator.hpp"
#include "flywheel/device/simulator.hpp"
#include "flywheel/model/batch.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/session.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/failing_new.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_adapter.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

using adapters = std::vector<adapter_use>;

const std::vector<std::string> every_product = {
    "blk.0.attn_q.weight",      "blk.0.attn_k.weight",   "blk.0.attn_v.weight",
    "blk.0.attn_output.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight",
    "blk.0.ffn_down.weight",    "blk.1.attn_q.weight",   "blk.1.ffn_up.weight"};

tiny_model two_layers(bool tied = true) {
  tiny_model m;
  m.layers = 2;
  m.tied = tied;
  return m;
}

model open_with(const std::filesystem::path& path, unsigned threads = 1, const char* isa = "") {
  context_options options;
  options.threads = threads;
  options.isa = isa;
  return model::open(path, {context::create(options).value(), {}}).value();
}

std::vector<token_id> adapter_ids(std::size_t n, std::uint64_t seed = 1) {
  tiny_random random(seed);
  std::vector<token_id> ids(n);
  for (token_id& id : ids) id = 3 + static_cast<token_id>(random.uniform() * 317);
  return ids;
}

session_options exact(adapters used = {}) {
  session_options options;
  options.kv_type = dtype::f32;
  options.adapters = std::move(used);
  return options;
}

/// Logits of every position.
std::vector<float> all_logits(const model& m, std::span<const token_id> ids, const adapters& used = {}) {
  session s = m.new_session(exact(used)).value();
  std::vector<float> rows;
  s.prefill_rows(ids, 1, [&](std::size_t, std::span<const float> row) -> result<void> {
     rows.insert(rows.end(), row.begin(), row.end());
     return {};
   }).value();
  return rows;
}

/// Largest difference in standard deviations of `want`.
double logits_distance(std::span<const float> got, std::span<const float> want) {
  REQUIRE(got.size() == want.size());
  double square = 0, worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    square += std::pow(static_cast<double>(want[i]), 2);
    const double delta = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    worst = std::max(worst, std::isfinite(delta) ? delta : HUGE_VAL);
  }
  return worst / std::sqrt(square / static_cast<double>(want.size()));
}

/// f32 against f32 with other orders of summation, through two layers.
constexpr double same_logits = 2e-5;
/// What has no effect at all is much smaller than this.
constexpr double another_model = 1e-2;

std::vector<float> logits_copy(const session& s) { return {s.logits().begin(), s.logits().end()}; }

/// A base, its tensors, and adapters beside it.
struct workshop {
  temp_folder folder;
  tiny_model shape;
  std::vector<tiny_tensor> base;
  std::filesystem::path path;
  std::function<void(io::metadata&, std::vector<tiny_tensor>&)> prepare;

  explicit workshop(const tiny_model& m = two_layers(),
                    std::function<void(io::metadata&, std::vector<tiny_tensor>&)> edit = {})
      : shape(m), base(tiny_tensors(m)), path(folder.path() / "base.gguf"), prepare(std::move(edit)) {
    write_tiny_model(path, shape, prepare);
  }
  std::filesystem::path write(const tiny_adapter& a, const std::string& name = "adapter") const {
    const std::filesystem::path out = folder.path() / (name + ".gguf");
    write_tiny_adapter(out, a, base);
    return out;
  }
  adapter open(const model& m, const tiny_adapter& a) const { return adapter::open(m, write(a)).value(); }
  /// The model with changed weights.
  model changed(const std::function<void(std::vector<tiny_tensor>&)>& edit) const {
    const std::filesystem::path out = folder.path() / "changed.gguf";
    write_tiny_model(out, shape, [&](io::metadata& meta, std::vector<tiny_tensor>& tensors) {
      edit(tensors);
      if (prepare) prepare(meta, tensors);
    });
    return open_with(out);
  }
};

error refusal_of(const result<adapter>& r) {
  REQUIRE_FALSE(r);
  return r.error();
}

}  // namespace

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
        const model m = open_with(w.path, 1, isa);
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
  const model m = open_with(w.path);
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
  const workshop w(two_layers(), [](io::metadata&, std::vector<tiny_tensor>& tensors) {
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
  const model m = open_with(w.path);
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
    const workshop w(two_layers(tied));
    const auto ids = adapter_ids(12);
    const model m = open_with(w.path);
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
      return open_with(path);
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
  const workshop w(two_layers(false));
  const auto ids = adapter_ids(12);
  const model m = open_with(w.path);
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
  workshop w(two_layers());
  w.prepare = fuse;
  io::metadata ignored;
  fuse(ignored, w.base);
  write_tiny_model(w.path, w.shape, fuse);
  const tiny_adapter a{{"blk.0.attn_qkv.weight", "blk.1.attn_qkv.weight"}};
  tiny_adapter dora = a;
  dora.dora = true;
  const model m = open_with(w.path);
  const auto ids = adapter_ids(9);
  for (const tiny_adapter& one : {a, dora}) {
    const std::filesystem::path path = w.folder.path() / "merged.gguf";
    write_tiny_model(path, w.shape, [&](io::metadata& meta, std::vector<tiny_tensor>& tensors) {
      fuse(meta, tensors);
      merge_tiny_adapter(one, 1, w.base, tensors);
    });
    CHECK(logits_distance(all_logits(m, ids, {{w.open(m, one), 1}}), all_logits(open_with(path), ids)) < same_logits);
  }
}

TEST_CASE("Results do not depend on chunks, threads and the way tokens come", "[adapter]") {
  tiny_model shape = two_layers();
  shape.weights = dtype::q8_0;
  const workshop w(shape);
  tiny_adapter a{every_product}, b{every_product};
  a.type = dtype::f16;
  b.seed = 7;
  b.dora = true;
  const auto ids = adapter_ids(120);
  std::vector<float> first;
  for (const unsigned threads : {1U, 2U, 3U}) {
    const model m = open_with(w.path, threads);
    const adapters used = {{w.open(m, a), 0.5F}, {w.open(m, b), 1}};
    for (const std::int32_t n_batch : {512, 7, 1}) {
      CAPTURE(threads, n_batch);
      session_options options = exact(used);
      options.n_batch = n_batch;
      session s = m.new_session(options).value();
      s.prefill(ids).value();
      if (first.empty()) first = logits_copy(s);
      CHECK(logits_copy(s) == first);
    }
  }
}

TEST_CASE("Adapters change between tokens, and what is computed stays", "[adapter]") {
  const workshop w;
  tiny_adapter other{every_product};
  other.seed = 6;
  other.rank = 9;  // more room for projections than before
  const model m = open_with(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product}), b = w.open(m, other);
  const auto ids = adapter_ids(6);
  session s = m.new_session(exact()).value();
  s.prefill(std::span(ids).first(3)).value();
  const std::vector<float> plain = logits_copy(s);
  session untouched = s.fork().value();
  s.set_adapters(adapters{{a, 1}}).value();
  CHECK(s.adapters().size() == 1);
  CHECK(s.options().adapters.size() == 1);
  CHECK(logits_copy(s) == plain);
  s.decode(ids[3]).value();
  session forked = s.fork().value();
  s.set_adapters(adapters{{b, 1}}).value();
  s.decode(ids[4]).value();
  const std::vector<float> changed = logits_copy(s);
  forked.decode(ids[4]).value();
  CHECK(logits_copy(forked) != changed);
  s.set_adapters({}).value();
  s.truncate(3).value();
  for (const token_id id : {ids[3], ids[4]}) {
    s.decode(id).value();
    untouched.decode(id).value();
    CHECK(logits_copy(s) == logits_copy(untouched));
  }
  // The same way again gives the same.
  s.truncate(3).value();
  s.set_adapters(adapters{{a, 1}}).value();
  s.decode(ids[3]).value();
  s.set_adapters(adapters{{b, 1}}).value();
  s.decode(ids[4]).value();
  CHECK(logits_copy(s) == changed);
}

TEST_CASE("Members of a batch have adapters of their own, bit for bit as alone", "[adapter][batch]") {
  tiny_model shape = two_layers();
  shape.weights = dtype::q8_0;
  const workshop w(shape);
  for (const unsigned threads : {1U, 2U}) {
    const model m = open_with(w.path, threads);
    std::vector<adapters> sets(1);
    for (std::uint64_t seed = 10; seed < 14; ++seed) {
      tiny_adapter a{every_product};
      a.seed = seed;
      a.rank = static_cast<std::int64_t>(seed) - 8;
      a.dora = seed == 12;
      a.type = seed % 2 == 0 ? dtype::f16 : dtype::f32;
      if (seed == 13) a.weights.insert(a.weights.end(), {"token_embd.weight", "output.weight"});
      sets.push_back({{w.open(m, a), 1}});
    }
    sets.push_back({sets[1][0], sets[2][0]});
    sets.push_back(sets[3]);
    const auto prompt = adapter_ids(40);
    const auto next = adapter_ids(5, 77);
    batch b = batch::create(m, exact()).value();
    std::vector<batch::member> members;
    for (const adapters& set : sets) members.push_back(b.join(prompt, set).value());
    CHECK(b.adapters(members[1]).size() == 1);
    while (b.pending() > 0) (void)b.step().value();
    for (std::size_t t = 0; t < next.size(); ++t) {
      for (const batch::member who : members) b.append(who, {&next[t], 1}).value();
      if (t == 2) b.set_adapters(members[0], sets[2]).value();
      (void)b.step().value();
    }
    for (std::size_t i = 0; i < sets.size(); ++i) {
      CAPTURE(threads, i);
      session alone = m.new_session(exact(sets[i])).value();
      alone.prefill(prompt).value();
      for (std::size_t t = 0; t < next.size(); ++t) {
        if (t == 2 && i == 0) alone.set_adapters(sets[2]).value();
        alone.decode(next[t]).value();
      }
      const std::span<const float> got = b.logits(members[i]);
      CHECK(std::equal(got.begin(), got.end(), alone.logits().begin(), alone.logits().end()));
    }
    // Sessions bring theirs and take them along.
    session alone = m.new_session(exact(sets[1])).value();
    const batch::member joined = b.join(std::move(alone)).value();
    CHECK(b.adapters(joined).size() == 1);
    session back = b.leave(members[2]).value();
    CHECK(back.adapters().size() == 1);
    back.decode(next[0]).value();
  }
}

TEST_CASE("Beginnings are shared by members with equal adapters alone", "[adapter][batch]") {
  const workshop w;
  const model m = open_with(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  const auto prompt = adapter_ids(80);
  const auto steps_for = [&](const adapters& first, const adapters& second) {
    batch b = batch::create(m, exact()).value();
    (void)b.join(prompt, first).value();
    (void)b.join(prompt, second).value();
    std::size_t computed = 0;
    while (b.pending() > 0) computed += b.step().value();
    return computed;
  };
  CHECK(steps_for({{a, 1}}, {{a, 1}}) < 2 * prompt.size());
  CHECK(steps_for({{a, 1}}, {{a, 0.5F}}) == 2 * prompt.size());
  CHECK(steps_for({{a, 1}}, {}) == 2 * prompt.size());
  // What was computed with other adapters is nobody's beginning.
  batch b = batch::create(m, exact()).value();
  const batch::member changed = b.join(prompt, adapters{{a, 1}}).value();
  while (b.pending() > 0) (void)b.step().value();
  b.set_adapters(changed, {}).value();
  (void)b.join(prompt).value();
  std::size_t computed = 0;
  while (b.pending() > 0) computed += b.step().value();
  CHECK(computed == prompt.size());
}

TEST_CASE("Requests name their adapters", "[adapter][batch]") {
  const workshop w;
  const model m = open_with(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  std::vector<generate_request> requests(2);
  for (generate_request& r : requests) {
    r.prompt = adapter_ids(5);
    r.options.max_tokens = 8;
    r.options.sampler = sampler_options::greedy();
    r.options.ignore_eos = true;
  }
  requests[1].adapters = adapters{{a, 2}};
  batch b = batch::create(m, exact()).value();
  const auto made = b.generate(requests).value();
  for (std::size_t i = 0; i < 2; ++i) {
    session s = m.new_session(exact(requests[i].adapters.value_or(adapters{}))).value();
    s.prefill(requests[i].prompt).value();
    CHECK(s.generate(requests[i].options).value().ids == made[i]->ids);
  }
  CHECK(made[0]->ids != made[1]->ids);
}

TEST_CASE("Saved states remember which adapters they were computed with", "[adapter][session_file]") {
  const workshop w;
  const model m = open_with(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  session s = m.new_session(exact({{a, 1}})).value();
  s.prefill(adapter_ids(5)).value();
  const std::vector<std::byte> bytes = s.save().value();
  session same = m.new_session(exact({{w.open(m, tiny_adapter{every_product}), 1}})).value();
  same.restore(bytes).value();
  CHECK(logits_copy(same) == logits_copy(s));
  for (const adapters& other : {adapters{}, adapters{{a, 0.5F}}}) {
    session different = m.new_session(exact(other)).value();
    const auto refused = different.restore(bytes);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == errc::invalid_argument);
    CHECK(different.tokens().empty());
  }
}

TEST_CASE("What cannot run is refused by name", "[adapter]") {
  const workshop w;
  const model m = open_with(w.path);
  const adapter a = w.open(m, tiny_adapter{every_product});
  SECTION("adapters of another model, empty handles, scales that are no numbers") {
    const model twin = open_with(w.path);
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
    tiny_model shape = two_layers();
    shape.weights = dtype::q8_channel;
    const workshop there(shape);
    const model far = model::open(there.path, options).value();
    CHECK(refusal_of(adapter::open(far, there.write({every_product}))).code == errc::unsupported);
  }
}

TEST_CASE("Running out of memory changes nothing", "[adapter]") {
  const workshop w;
  const model m = open_with(w.path);
  const std::filesystem::path path = w.write({every_product});
  const adapter a = adapter::open(m, path).value();
  session s = m.new_session(exact()).value();
  s.prefill(adapter_ids(4)).value();
  const std::vector<float> before = logits_copy(s);
  for (std::uint64_t count = 0;; count += 7) {
    result<adapter> opened = error{};
    {
      const fail_allocations fail(count);
      opened = adapter::open(m, path);
    }
    if (opened) break;
    CHECK(opened.error().code == errc::out_of_memory);
    REQUIRE(count < 5000);
  }
  const adapters used = {{a, 1}};
  for (std::uint64_t count = 0;; ++count) {
    result<void> set;
    {
      const fail_allocations fail(count);
      set = s.set_adapters(used);
    }
    if (set) break;
    CHECK(set.error().code == errc::out_of_memory);
    CHECK(s.adapters().empty());
    CHECK(logits_copy(s) == before);
    REQUIRE(count < 100);
  }
  s.decode(5).value();
}

TEST_CASE("A pool keeps what was used last", "[adapter][adapter_pool]") {
  const workshop w;
  const model m = open_with(w.path);
  const std::size_t each = w.open(m, {every_product}).info().bytes;
  adapter_pool_options options;
  options.max_bytes = 2 * each + each / 2;
  adapter_pool pool = adapter_pool::create(m, options).value();
  for (int i = 0; i < 2000; ++i) {
    const std::string name = std::to_string(i);
    pool.add(name, i < 4 ? w.write({every_product}, name) : w.folder.path() / "missing.gguf").value();
  }
  CHECK(pool.size() == 2000);
  CHECK(pool.resident() == 0);
  CHECK(pool.add("0", w.path).error().code == errc::invalid_argument);
  CHECK(pool.add("", w.path).error().code == errc::invalid_argument);
  const adapter first = pool.get("0").value();
  (void)pool.get("1").value();
  CHECK(pool.get("0").value().shared() == first.shared());
  (void)pool.get("2").value();  // 1 goes
  CHECK(pool.resident() == 2);
  CHECK(pool.resident_bytes() == 2 * each);
  CHECK(pool.get("0").value().shared() == first.shared());
  CHECK(pool.get("7").error().code == errc::not_found);
  CHECK(pool.get("nobody").error().code == errc::not_found);
  pool.remove("0").value();
  CHECK(pool.resident() == 1);
  CHECK(pool.get("0").error().code == errc::not_found);
  CHECK(pool.remove("0").error().code == errc::not_found);
  CHECK(m.new_session(exact({{first, 1}})));  // a handle outlives its name
  adapter_pool small = adapter_pool::create(m, {each - 1}).value();
  small.add("a", w.folder.path() / "1.gguf").value();
  CHECK(small.get("a").error().code == errc::out_of_memory);
  CHECK(small.resident() == 0);
}

TEST_CASE("Threads share a pool", "[adapter][adapter_pool]") {
  const workshop w;
  const model m = open_with(w.path);
  const std::size_t each = w.open(m, {every_product}).info().bytes;
  const adapter_pool pool = [&] {
    adapter_pool made = adapter_pool::create(m, {2 * each}).value();
    for (const char* name : {"a", "b", "c"}) made.add(name, w.write({every_product}, name)).value();
    return made;
  }();
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const auto got = pool.get(std::string(1, static_cast<char>('a' + (t + i) % 3)));
        if (!got || got->info().bytes != each) ++failures;
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(failures == 0);
  CHECK(pool.resident_bytes() <= 2 * each);
}

TEST_CASE("The family's adapters give their golden logits and continuations", "[adapter]") {
  FLYWHEEL_REQUIRE_SHARED(family, "family");
  const model m = open_with(family / "models/tiny-base/gguf/tiny-base-f16.gguf", 2);
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
