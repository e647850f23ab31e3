// Which device computes what of a model, and what that costs.
#include "flywheel/model/plan.hpp"

#include <algorithm>

#include "flywheel/graph/work.hpp"
#include "flywheel/model/model.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_encoder.hpp"
#include "support/tiny_model.hpp"

namespace flywheel {
namespace {

using test::temp_folder;
using test::tiny_model;

/// Claims products, predicts a nanosecond per multiply-add, and computes nothing.
class product_device final : public device::device {
 public:
  explicit product_device(std::string name, std::int64_t least = 0, std::string refused = {})
      : refused_(std::move(refused)) {
    caps_.name = std::move(name);
    caps_.min_multiply_adds = least;
  }
  const flywheel::device::capabilities& caps() const noexcept override { return caps_; }
  flywheel::device::support query(const graph::graph& g, const graph::node& n) const override {
    if (n.kind != graph::op::linear) return {false, "products alone", 0, 0};
    const std::string& name = g.weight_of(n.inputs[1])->name;
    if (!refused_.empty() && name.find(refused_) != std::string::npos) return {false, "not " + name, 0, 0};
    return {true, {}, 0, 1e-9 * static_cast<double>(graph::multiply_adds(g, n))};
  }
  result<std::shared_ptr<const flywheel::device::device_weights>> measure(std::span<const flywheel::device::subgraph>,
                                                                          const io::archive&) const override {
    return error{errc::unsupported, "it computes nothing", "products"};
  }
  result<std::shared_ptr<const flywheel::device::device_weights>> load(std::span<const flywheel::device::subgraph>,
                                                                       const io::archive&, executor&,
                                                                       std::pmr::memory_resource*,
                                                                       const control&) const override {
    return error{errc::unsupported, "it computes nothing", "products"};
  }
  result<std::unique_ptr<const flywheel::device::executable>> compile(
      const flywheel::device::subgraph&, std::shared_ptr<const flywheel::device::device_weights>) const override {
    return error{errc::unsupported, "it computes nothing", "products"};
  }

 private:
  flywheel::device::capabilities caps_;
  std::string refused_;
};

using devices = std::vector<std::shared_ptr<const device::device>>;

struct planned {
  temp_folder folder;
  io::archive file;
  explicit planned(const tiny_model& m) {
    test::write_tiny_model(folder / "tiny.gguf", m);
    file = io::archive::open(folder / "tiny.gguf").value();
  }
  [[nodiscard]] device_plan on(const devices& all, const plan_options& options = {}) const {
    return plan(file, all, options).value();
  }
};

tiny_model two_layers() {
  tiny_model m;
  m.layers = 2;
  m.tied = false;
  return m;
}

std::size_t count(const device_plan& p, graph::op kind) {
  return static_cast<std::size_t>(
      std::count_if(p.operations.begin(), p.operations.end(), [&](const auto& o) { return o.kind == kind; }));
}

}  // namespace

TEST_CASE("A plan without devices is the CPU's") {
  const device_plan p = planned(two_layers()).on({});
  REQUIRE(p.devices.size() == 1);
  CHECK(p.architecture == "llama");
  CHECK(p.devices[0].name == "cpu");
  CHECK(p.devices[0].parts == 1);
  CHECK(p.devices[0].operations == p.operations.size());
  CHECK(p.devices[0].predicted == 0);
  CHECK(p.parts == 1);
  CHECK(p.transfers == 0);
  CHECK(p.transfer_bytes == 0);
  // q, k, v, output: 32 x (32 + 16 + 16 + 32); gate, up, down: 3 x 32 x 64; twice; and the head
  CHECK(p.multiply_adds() == 2 * (32 * 96 + 3 * 32 * 64) + 320 * 32);
  // those weights, the embedding, and five norms, in f32
  CHECK(p.devices[0].weight_bytes == 4 * (static_cast<std::uint64_t>(p.multiply_adds()) + 320 * 32 + 5 * 32));
}

TEST_CASE("A device gets what it claims, and the CPU the rest") {
  const auto products = std::make_shared<product_device>("products");
  plan_options options;
  options.positions = 100;
  const device_plan p = planned(two_layers()).on({products}, options);
  REQUIRE(p.devices.size() == 2);
  CHECK(p.devices[0].name == "products");
  CHECK(p.devices[1].name == "cpu");
  CHECK(p.devices[0].multiply_adds == p.multiply_adds());
  CHECK(p.devices[0].operations == 9);  // four in each layer, the head
  CHECK(p.devices[0].predicted == 1);
  CHECK(p.devices[0].seconds == Approx(1e-9 * static_cast<double>(p.multiply_adds())));
  CHECK(p.devices[0].weight_bytes == 4 * (static_cast<std::uint64_t>(p.multiply_adds()) + 5 * 32));
  CHECK(p.devices[1].weight_bytes == 4 * 320 * 32);
  CHECK(count(p, graph::op::linear) == 9);
  for (const planned_operation& o : p.operations) {
    CHECK((o.device == 0) == (o.kind == graph::op::linear));
    if (o.device == 0) CHECK(o.refusals.empty());
    if (o.device == 1) CHECK(o.refusals == std::vector<std::string>{"products alone"});
    if (o.kind == graph::op::embed) CHECK(o.read_bytes == 4 * 32);
    if (o.kind == graph::op::attention) CHECK(o.attention_multiply_adds == 2 * 32 * 100);
  }
  const planned_operation& qkv = p.operations[1];
  REQUIRE(qkv.weights.size() == 4);
  CHECK(qkv.layer == 0);
  CHECK(qkv.weights[1].name == "blk.0.attn_k.weight");
  CHECK(qkv.weights[1].dims == shape{16, 32});
  CHECK(qkv.weights[3].name == "blk.0.attn_norm.weight");
  CHECK(qkv.weight_bytes == 4 * (32 * 64 + 32));
  // The embedding goes there; q, k and v come back and attention's rows go there in each layer. The last layer goes on
  // with the wanted rows alone: its input comes back, and those of it go there. Logits come back.
  CHECK(p.transfers == 1 + 2 * (3 + 1) + 3);
  CHECK(p.transfer_bytes == 4 * (32 + 2 * (32 + 16 + 16 + 32) + 32 + 32 + 320));
  CHECK(p.parts == p.operations.back().part + 1);
  CHECK(p.devices[0].parts + p.devices[1].parts == p.parts);
}

TEST_CASE("Refusals are kept for every device before the one that computes") {
  const auto first = std::make_shared<product_device>("first", 0, "ffn_down");
  const auto second = std::make_shared<product_device>("second", 5000);
  const device_plan p = planned(two_layers()).on({first, second});
  REQUIRE(p.devices.size() == 3);
  CHECK(p.devices[1].operations == 0);
  bool seen = false;
  for (const planned_operation& o : p.operations) {
    if (o.weights.empty() || o.weights[0].name != "blk.1.ffn_down.weight") continue;
    seen = true;
    CHECK(o.device == 2);
    REQUIRE(o.refusals.size() == 2);
    CHECK(o.refusals[0] == "not blk.1.ffn_down.weight");
    CHECK(o.refusals[1].find("too little work: 2048") != std::string::npos);
    CHECK(o.seconds == 0);
  }
  CHECK(seen);
}

TEST_CASE("A tied embedding is held by both devices, and read row by row where it is a table") {
  tiny_model m = two_layers();
  m.tied = true;
  m.weights = dtype::q8_0;
  const auto products = std::make_shared<product_device>("products");
  const device_plan p = planned(m).on({products});
  CHECK(p.devices[1].weight_bytes == 320 * 34);
  CHECK(p.operations.front().read_bytes == 34);
  CHECK(p.operations.back().weights[0].name == "token_embd.weight");
  CHECK(p.operations.back().read_bytes >= 320 * 34);
  const device_plan alone = planned(m).on({});
  CHECK(alone.devices[0].weight_bytes == p.devices[0].weight_bytes);  // counted once
}

TEST_CASE("Experts count by those that a token uses") {
  tiny_model m = two_layers();
  m.experts = 4;
  m.experts_used = 2;
  const device_plan p = planned(m).on({std::make_shared<product_device>("products")});
  REQUIRE(count(p, graph::op::moe_ffn) == 2);
  for (const planned_operation& o : p.operations) {
    if (o.kind != graph::op::moe_ffn) continue;
    CHECK(o.multiply_adds == 2 * 3 * 32 * 64);
    CHECK(o.weight_bytes == 4 * 4 * 3 * 32 * 64);
    CHECK(o.read_bytes == o.weight_bytes / 2);
    CHECK(o.layer >= 0);
    CHECK(o.device == 1);
  }
}

TEST_CASE("Encoders have plans, too") {
  const temp_folder folder;
  test::write_tiny_encoder(folder / "e.gguf", {});
  const io::archive file = io::archive::open(folder / "e.gguf").value();
  plan_options options;
  options.positions = 50;
  const devices all = {std::make_shared<product_device>("products")};
  const device_plan p = plan(file, all, options).value();
  CHECK(p.architecture == "bert");
  CHECK(p.devices[0].multiply_adds == 2 * (4 * 32 * 32 + 2 * 32 * 48));
  CHECK(p.transfers > 0);
  for (const planned_operation& o : p.operations)
    if (o.kind == graph::op::attention) CHECK(o.attention_multiply_adds == 2 * 32 * 50);
}

TEST_CASE("A plan reads no weights") {
  const planned model(two_layers());
  struct source {
    std::vector<std::byte> bytes;
    std::size_t reads = 0;
  } from{test::read_bytes(model.folder / "tiny.gguf")};
  io::reader_callback reader;
  reader.size = from.bytes.size();
  reader.user = &from;
  reader.read = [](void* user, std::uint64_t offset, std::byte* out, std::size_t length) {
    auto& s = *static_cast<source*>(user);
    ++s.reads;
    std::copy_n(s.bytes.begin() + static_cast<std::ptrdiff_t>(offset), length, out);
    return true;
  };
  const io::archive file = io::archive::open(reader).value();
  const std::size_t header = from.reads;
  CHECK(header > 0);
  const devices all = {std::make_shared<product_device>("products")};
  CHECK(plan(file, all).value().transfers == 12);
  CHECK(from.reads == header);
}

TEST_CASE("Plans refuse what is wrong and name the file") {
  const planned model(two_layers());
  const devices none = {nullptr};
  CHECK(plan(model.file, none).error().code == errc::invalid_argument);
  plan_options options;
  options.positions = -1;
  CHECK(plan(model.file, {}, options).error().code == errc::invalid_argument);
  const temp_folder folder;
  tiny_model odd;
  odd.architecture = "lama";
  test::write_tiny_model(folder / "odd.gguf", odd);
  const auto refused = plan(io::archive::open(folder / "odd.gguf").value(), {});
  REQUIRE(!refused);
  CHECK(refused.error().code == errc::unsupported);
  CHECK(refused.error().where.find("odd.gguf") != std::string::npos);
}

}  // namespace flywheel
