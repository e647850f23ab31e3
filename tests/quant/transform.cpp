// Scales and rotations moved between layers: the model stays the same function.
#include "flywheel/quant/transform.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>

#include "flywheel/model/model.hpp"
#include "flywheel/quant/quantize_model.hpp"
#include "src/quant/edited_archive.hpp"
#include "src/quant/hadamard.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_model.hpp"

using namespace flywheel;
using namespace flywheel::quant;
using namespace flywheel::test;

namespace {

using tensor_list = std::vector<tiny_tensor>;

struct changed_llama {
  const char* name;
  const char* architecture;
  std::int32_t experts;
  bool tied;
  void (*edit)(io::metadata& meta, tensor_list& list, const tiny_model& m);
};

void add(tensor_list& list, const std::string& name, shape dims, float center = 0, float spread = 0.3F) {
  tiny_random random(list.size());
  tiny_tensor t{{name, dtype::f32, dims, 0}, {}};
  for (std::int64_t i = 0; i < dims.elements(); ++i) t.values.push_back(center + spread * random.normal());
  list.push_back(std::move(t));
}

void remove(tensor_list& list, const std::string& name) {
  std::erase_if(list, [&](const tiny_tensor& t) { return t.plan.name == name; });
}

std::string block_of(int layer) { return "blk." + std::to_string(layer) + "."; }

const changed_llama models[] = {
    {"llama, tied", "llama", 0, true, [](io::metadata&, tensor_list&, const tiny_model&) {}},
    {"llama", "llama", 0, false, [](io::metadata&, tensor_list&, const tiny_model&) {}},
    {"llama with experts", "llama", 4, true, [](io::metadata&, tensor_list&, const tiny_model&) {}},
    {"qwen2, biases", "qwen2", 0, true,
     [](io::metadata&, tensor_list& list, const tiny_model& m) {
       for (int layer = 0; layer < m.layers; ++layer) {
         add(list, block_of(layer) + "attn_q.bias", {m.hidden});
         add(list, block_of(layer) + "attn_k.bias", {m.hidden / m.heads * m.kv_heads});
         add(list, block_of(layer) + "attn_v.bias", {m.hidden / m.heads * m.kv_heads});
       }
     }},
    {"qwen3, norms of heads", "qwen3", 0, false,
     [](io::metadata&, tensor_list& list, const tiny_model& m) {
       for (int layer = 0; layer < m.layers; ++layer) {
         add(list, block_of(layer) + "attn_q_norm.weight", {m.hidden / m.heads}, 1);
         add(list, block_of(layer) + "attn_k_norm.weight", {m.hidden / m.heads}, 1);
       }
     }},
    {"phi3, fused rows", "phi3", 0, true,
     [](io::metadata&, tensor_list& list, const tiny_model& m) {
       for (int layer = 0; layer < m.layers; ++layer) {
         for (const char* part : {"attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"})
           remove(list, block_of(layer) + part + ".weight");
         add(list, block_of(layer) + "attn_qkv.weight", {m.hidden + 2 * (m.hidden / m.heads * m.kv_heads), m.hidden}, 0,
             0.2F);
         add(list, block_of(layer) + "ffn_up.weight", {2 * m.ffn, m.hidden}, 0, 0.2F);
       }
     }},
    {"granite, scales", "granite", 0, true,
     [](io::metadata& meta, tensor_list&, const tiny_model&) {
       meta.set("granite.embedding_scale", 12.0F);
       meta.set("granite.residual_scale", 0.22F);
       meta.set("granite.attention.scale", 0.3F);
       meta.set("granite.logit_scale", 8.0F);
     }},
};

tiny_model write(const std::filesystem::path& path, const changed_llama& what, std::int32_t hidden = 48) {
  tiny_model m;
  m.architecture = what.architecture;
  m.layers = 2;
  m.hidden = hidden;  // 48 = 4 * 12
  m.heads = 6;
  m.kv_heads = 3;
  m.experts = what.experts;
  m.tied = what.tied;
  m.vocabulary = false;
  write_tiny_model(path, m, [&](io::metadata& meta, tensor_list& list) { what.edit(meta, list, m); });
  return m;
}

std::vector<float> logits(const io::archive& file) {
  std::vector<token_id> ids(20);
  std::iota(ids.begin(), ids.end(), 3);
  std::vector<float> all;
  session_options options;
  options.kv_type = dtype::f32;
  const model m = model::open(file).value();
  session s = m.new_session(options).value();
  s.prefill_rows(ids, 1, [&](std::size_t, std::span<const float> row) -> result<void> {
     all.insert(all.end(), row.begin(), row.end());
     return {};
   }).value();
  return all;
}

/// Largest difference, as part of the largest number.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0, peak = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    peak = std::max(peak, std::fabs(static_cast<double>(a[i])));
  }
  return largest / peak;
}

constexpr double rounding_errors = 3e-5;

std::vector<float> embedding(const io::archive& file) {
  const std::vector<token_id> ids[] = {{3, 9, 27, 81}};
  embed_options options;
  options.kv_type = dtype::f32;
  return model::open(file).value().embed(ids, options).value().values;
}

std::vector<float> values_of(const io::archive& file, std::string_view name) {
  const io::tensor_info* tensor = file.find(name);
  REQUIRE(tensor);
  buffer scratch;
  const auto bytes = file.bytes(*tensor, scratch).value();
  std::vector<float> out(static_cast<std::size_t>(tensor->dims.elements()));
  formats::decode(tensor_view(tensor->type, tensor->dims, bytes.data()), out).value();
  return out;
}

}  // namespace

TEST_CASE("Hadamard rotations are orthogonal and flat", "[quant][transform]") {
  for (const std::int64_t n : {1, 2, 8, 12, 20, 24, 28, 36, 40, 44, 48, 52 * 2, 56, 96, 144, 160}) {
    CAPTURE(n);
    const auto rotation = hadamard_rotation::create(n, 1);
    REQUIRE(rotation);
    const auto size = static_cast<std::size_t>(n);
    std::vector<float> matrix(size * size, 0), scratch;
    for (std::size_t i = 0; i < size; ++i) {
      matrix[i * size + i] = 1;
      rotation->apply(matrix.data() + i * size, 1, scratch);
    }
    double worst = 0;
    for (std::size_t a = 0; a < size; ++a)
      for (std::size_t b = 0; b < size; ++b) {
        double dot = 0;
        for (std::size_t i = 0; i < size; ++i)
          dot += static_cast<double>(matrix[a * size + i]) * static_cast<double>(matrix[b * size + i]);
        worst = std::max(worst, std::fabs(dot - (a == b ? 1 : 0)));
        worst = std::max(worst, std::fabs(std::fabs(static_cast<double>(matrix[a * size + b])) -
                                          1 / std::sqrt(static_cast<double>(n))));
      }
    CHECK(worst < 1e-5);
    // Rows as numbers are the same thing for each column.
    std::vector<float> wide(size * 3), column(size);
    for (std::size_t i = 0; i < wide.size(); ++i) wide[i] = static_cast<float>(i * i % 17);
    for (std::size_t i = 0; i < size; ++i) column[i] = wide[i * 3 + 1];
    rotation->apply(wide.data(), 3, scratch);
    rotation->apply(column.data(), 1, scratch);
    for (std::size_t i = 0; i < size; ++i) CHECK(wide[i * 3 + 1] == column[i]);
  }
  for (const std::int64_t n : {3, 6, 10, 18, 22, 26}) CHECK_FALSE(hadamard_rotation::create(n, 1));
}

TEST_CASE("A rotated model gives the same logits", "[quant][transform]") {
  for (const changed_llama& what : models) {
    CAPTURE(what.name);
    const temp_folder folder;
    write(folder / "m.gguf", what);
    const io::archive file = io::archive::open(folder / "m.gguf").value();
    const std::vector<float> expected = logits(file);
    for (const auto& [stream, heads] : {std::pair{true, true}, {true, false}, {false, true}}) {
      rotation_options options;
      options.stream = stream;
      options.heads = heads;
      const io::archive rotated = rotate(file, options).value();
      CHECK(rotated.metadata().contains("flywheel.quantize.rotated") == stream);
      CHECK(rotated.metadata().contains("flywheel.quantize.rotated_heads") == heads);
      CHECK(difference(expected, logits(rotated)) < rounding_errors);
      const bool fused = std::string_view(what.architecture) == "phi3";
      CHECK(values_of(rotated, fused ? "blk.0.attn_qkv.weight" : "blk.0.attn_v.weight") !=
            values_of(file, fused ? "blk.0.attn_qkv.weight" : "blk.0.attn_v.weight"));
      if (!stream) continue;
      CHECK(values_of(rotated, "output_norm.weight") == std::vector<float>(48, 1.0F));
      CHECK(rotated.find("output.weight"));
    }
  }
}

TEST_CASE("Models that cannot be rotated are refused by name", "[quant][transform]") {
  const temp_folder folder;
  const changed_llama gemma{"gemma2", "gemma2", 0, true, [](io::metadata&, tensor_list& list, const tiny_model& m) {
                              for (int layer = 0; layer < m.layers; ++layer) {
                                add(list, block_of(layer) + "post_attention_norm.weight", {m.hidden}, 1);
                                add(list, block_of(layer) + "post_ffw_norm.weight", {m.hidden}, 1);
                              }
                            }};
  write(folder / "gemma.gguf", gemma);
  const auto refused = rotate(io::archive::open(folder / "gemma.gguf").value());
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == errc::unsupported);
  CHECK(refused.error().to_string().find("post_attention_norm") != std::string::npos);
  CHECK(refused.error().to_string().find("rms_norm") != std::string::npos);
  rotation_options heads;
  heads.stream = false;
  const io::archive file = io::archive::open(folder / "gemma.gguf").value();
  CHECK(difference(logits(file), logits(rotate(file, heads).value())) < rounding_errors);

  write(folder / "odd.gguf", models[0], 60);  // 6 heads of 10; 60 has a matrix, 10 has none
  const auto odd = rotate(io::archive::open(folder / "odd.gguf").value());
  REQUIRE_FALSE(odd);
  CHECK(odd.error().message.find("of size 10") != std::string::npos);
}

TEST_CASE("Links of channels are read from the graph", "[quant][transform]") {
  const temp_folder folder;
  write(folder / "m.gguf", models[0]);
  const auto links = find_channel_links(io::archive::open(folder / "m.gguf").value()).value();
  // Four in each of two layers; the output norm's reader is the embedding table.
  REQUIRE(links.size() == 8);
  CHECK(links[0].of == channel_link::kind::norm);
  CHECK(links[0].made_by[0].tensor == "blk.0.attn_norm.weight");
  CHECK(links[0].read_by.size() == 3);
  CHECK(links[1].of == channel_link::kind::values);
  CHECK(links[1].channels == 24);
  CHECK(links[1].shared_by == 2);
  CHECK(links[1].read_by == std::vector<std::string>{"blk.0.attn_output.weight"});
  CHECK(links[1].channel_of(17) == 9);  // columns 16 .. 31 are the heads of kv head 1, channels 8 .. 15
  CHECK(links[3].of == channel_link::kind::hidden);
  CHECK(links[3].made_by[0].tensor == "blk.0.ffn_up.weight");
  CHECK(links[3].read_by == std::vector<std::string>{"blk.0.ffn_down.weight"});
}

TEST_CASE("Scales moved across every link leave the logits", "[quant][transform]") {
  for (const changed_llama& what : models) {
    CAPTURE(what.name);
    const temp_folder folder;
    write(folder / "m.gguf", what);
    const io::archive file = io::archive::open(folder / "m.gguf").value();
    const std::vector<float> expected = logits(file);
    tiny_random random(3);
    std::vector<channel_scales> all;
    const std::vector<channel_link> links = find_channel_links(file).value();
    for (const channel_link& link : links) {
      channel_scales one{link, {}};
      for (std::int64_t i = 0; i < link.channels; ++i) one.scales.push_back(std::exp(random.normal()));
      // Each alone, so that none can hide.
      const io::archive moved = move_scales(file, {one}).value();
      CAPTURE(link.made_by[0].tensor);
      CHECK(moved.metadata().contains("flywheel.quantize.scaled"));
      CHECK(difference(expected, logits(moved)) < rounding_errors);
      CHECK(values_of(moved, link.read_by[0]) != values_of(file, link.read_by[0]));
      all.push_back(std::move(one));
    }
    CHECK(all.size() >= 4);
    CHECK(difference(expected, logits(move_scales(file, all).value())) < rounding_errors);
    all[0].scales[0] = 0;
    CHECK(move_scales(file, all).error().code == errc::invalid_argument);
    all[0].scales.pop_back();
    CHECK(move_scales(file, all).error().code == errc::invalid_argument);
  }
}

TEST_CASE("Links that do not fit are refused", "[quant][transform]") {
  const temp_folder folder;
  write(folder / "m.gguf", models[0]);
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  const std::vector<channel_link> links = find_channel_links(file).value();
  const auto refused = [&](std::size_t which, auto&& change, std::string_view part) {
    channel_scales one{links[which], {}};
    one.scales.assign(static_cast<std::size_t>(one.link.channels), 2.0F);
    move_scales(file, {one}).value();
    change(one.link);
    const auto moved = move_scales(file, {one});
    REQUIRE_FALSE(moved);
    CAPTURE(moved.error().to_string());
    CHECK(moved.error().code == errc::invalid_argument);
    CHECK(moved.error().to_string().find(part) != std::string::npos);
  };
  constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t dim : {std::int64_t{0}, std::int64_t{-8}, std::int64_t{7}, std::int64_t{48}, largest})
    refused(
        1, [&](channel_link& l) { l.head_dim = dim; }, "whole heads");
  for (const std::int64_t heads : {std::int64_t{0}, std::int64_t{-2}, largest})
    refused(
        1, [&](channel_link& l) { l.shared_by = heads; }, "shared_by");
  refused(
      1, [&](channel_link& l) { l.shared_by = 3; }, "blk.0.attn_output.weight");
  for (const std::size_t i : {0U, 1U, 3U}) {
    for (const std::int64_t first : {std::int64_t{-1}, std::int64_t{1}, largest})
      refused(
          i, [&](channel_link& l) { l.made_by[0].first = first; }, links[i].made_by[0].tensor);
    for (const std::int64_t channels : {std::int64_t{0}, std::int64_t{-24}, largest})
      refused(
          i, [&](channel_link& l) { l.channels = channels; }, links[i].made_by[0].tensor);
  }
}

TEST_CASE("Hidden states stay, or the model says that they do not", "[quant][transform]") {
  for (const changed_llama& what : models) {
    CAPTURE(what.name);
    const temp_folder folder;
    write(folder / "m.gguf", what);
    const io::archive file = io::archive::open(folder / "m.gguf").value();
    const std::vector<float> expected = embedding(file);
    tiny_random random(4);
    std::vector<channel_scales> all;
    const std::vector<channel_link> links = find_channel_links(file).value();
    for (const channel_link& link : links) {
      channel_scales one{link, {}};
      for (std::int64_t i = 0; i < link.channels; ++i) one.scales.push_back(std::exp(random.normal()));
      all.push_back(std::move(one));
    }
    CHECK(difference(expected, embedding(move_scales(file, all).value())) < rounding_errors);

    rotation_options heads;
    heads.stream = false;
    CHECK(difference(expected, embedding(rotate(file, heads).value())) < rounding_errors);
    const std::vector<token_id> ids[] = {{3, 9, 27, 81}};
    const auto refused = model::open(rotate(file).value()).value().embed(ids);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == errc::unsupported);
    CHECK(refused.error().message.find("rotated") != std::string::npos);
  }
  const temp_folder folder;
  for (const auto& [pooling, fits] : {std::pair{3U, false}, {1U, false}, {4U, true}}) {
    const changed_llama& plain = models[0];
    tiny_model m;
    m.vocabulary = false;
    write_tiny_model(folder / "m.gguf", m, [&, number = pooling](io::metadata& meta, tensor_list& list) {
      plain.edit(meta, list, m);
      meta.set("llama.pooling_type", std::uint32_t{number});
    });
    const auto rotated = rotate(io::archive::open(folder / "m.gguf").value());
    CHECK(rotated.has_value() == fits);
    if (!fits) CHECK(rotated.error().where == "llama.pooling_type");
  }
}

/// The bytes of a model, and which tensors were read and not released since.
class watched_source final : public io::byte_source {
 public:
  watched_source(const io::archive& file, std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {
    for (const io::tensor_info& t : file.tensors()) begins_[t.offset] = t.name;
  }
  [[nodiscard]] std::uint64_t size() const noexcept override { return bytes_.size(); }
  [[nodiscard]] result<void> read(std::uint64_t offset, std::span<std::byte> out) const override {
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
    const std::scoped_lock lock(guard_);
    held.insert(std::prev(begins_.upper_bound(offset))->second);
    most = std::max(most, held.size());
    return {};
  }
  void release(std::uint64_t offset, std::uint64_t) const noexcept override {
    const std::scoped_lock lock(guard_);
    held.erase(begins_.at(offset));
  }

  mutable std::set<std::string> held;
  mutable std::size_t most = 0;

 private:
  std::vector<std::byte> bytes_;
  std::map<std::uint64_t, std::string> begins_;
  mutable std::mutex guard_;
};

TEST_CASE("Of a rotated model no more than a tensor is in memory", "[quant][transform]") {
  const temp_folder folder;
  tiny_model m;
  m.layers = 2;
  m.hidden = 64;
  m.tied = false;
  write_tiny_model(folder / "m.gguf", m);
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  const auto source = std::make_shared<watched_source>(file, read_bytes(folder / "m.gguf"));
  io::archive_content content;
  content.metadata = file.metadata();
  content.tensors.assign(file.tensors().begin(), file.tensors().end());
  content.sources = {source};
  const io::archive watched = io::archive::assemble(std::move(content)).value();

  const io::archive rotated = rotate(watched).value();
  CHECK(source->held.empty());
  for (const io::tensor_info& t : rotated.tensors()) read_floats(rotated, t).value();
  CHECK(source->held.empty());
  CHECK(source->most == 1);

  std::string text;
  for (int i = 0; i < 150; ++i) text += " the " + std::to_string(i * i) + " and hello";
  quantize_options options{.type = "Q4_0", .pure = true, .calibration = {{"text", text}}, .calibration_ctx = 32};
  options.method = method::gptq;
  options.rotate = true;
  quantize_model(watched, folder / "a.gguf", options).value();
  options.type.clear();
  options.target_bpw = 9;
  options.method = method::search;
  quantize_model(watched, folder / "b.gguf", options).value();
  // The table, which models keep to look rows up, the tensor at hand, and the one before it.
  CHECK(source->most <= 3);
}

TEST_CASE("SmoothQuant's scales are its formula, and leave the logits", "[quant][transform]") {
  const temp_folder folder;
  write(folder / "m.gguf", models[0]);
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  std::map<std::string, std::vector<float>, std::less<>> peaks;
  std::vector<float> x(48);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 1 + static_cast<float>(i % 7);
  peaks["blk.1.attn_q.weight"] = x;
  const io::archive smoothed = smooth(file, peaks, 0.25F).value();
  CHECK(difference(logits(file), logits(smoothed)) < rounding_errors);
  std::vector<float> heaviest(48, 0);
  for (const char* name : {"blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight"}) {
    const auto w = values_of(file, name);
    for (std::size_t i = 0; i < w.size(); ++i) heaviest[i % 48] = std::max(heaviest[i % 48], std::fabs(w[i]));
  }
  const auto before = values_of(file, "blk.1.attn_norm.weight"), after = values_of(smoothed, "blk.1.attn_norm.weight");
  for (std::size_t i = 0; i < 48; ++i) {
    const double s = std::pow(static_cast<double>(x[i]), 0.25) / std::pow(static_cast<double>(heaviest[i]), 0.75);
    CHECK(std::fabs(static_cast<double>(before[i]) / static_cast<double>(after[i]) / s - 1) < 1e-4);
  }
  CHECK(values_of(smoothed, "blk.0.attn_norm.weight") == values_of(file, "blk.0.attn_norm.weight"));
  CHECK(smooth(file, peaks, 1.5F).error().code == errc::invalid_argument);
  peaks["blk.1.attn_q.weight"].pop_back();
  CHECK(smooth(file, peaks).error().code == errc::invalid_argument);
}

TEST_CASE("AWQ protects the channels that are active", "[quant][transform]") {
  tiny_model m;
  m.hidden = 256;
  m.heads = 4;
  m.ffn = 256;
  m.vocabulary = false;
  const temp_folder folder;
  write_tiny_model(folder / "m.gguf", m);
  const io::archive file = io::archive::open(folder / "m.gguf").value();
  auto moments = std::make_shared<tensor_moments>();
  gram_matrix& h = moments->matrices.emplace_back();
  h.n = 256;
  h.rows = 1;
  h.sums.assign(256 * 256, 0);
  for (std::size_t i = 0; i < 256; ++i) h.sums[i * 256 + i] = i % 64 == 5 ? 2500.0F : 1.0F;
  moments_by_tensor activations;
  for (const char* name : {"attn_q", "attn_k", "attn_v"})
    activations["blk.0." + std::string(name) + ".weight"] = moments;
  awq_options options;
  options.type = [](std::string_view) { return dtype::q4_0; };
  const auto found = find_awq_scales(file, activations, options).value();
  REQUIRE(found.size() == 1);
  CHECK(found[0].link.made_by[0].tensor == "blk.0.attn_norm.weight");
  CHECK(found[0].scales[5] > 1.2F * found[0].scales[6]);
  CHECK(found[0].scales[5] == found[0].scales[69]);
  CHECK(difference(logits(file), logits(move_scales(file, found).value())) < rounding_errors);

  // What belongs to another model, or to none.
  const auto refused = [&](tensor_moments wrong, std::string_view part) {
    activations["blk.0.attn_q.weight"] = std::make_shared<tensor_moments>(std::move(wrong));
    for (const dtype type : {dtype::q4_0, dtype::f32}) {
      options.type = [&](std::string_view) { return type; };
      const auto none = find_awq_scales(file, activations, options);
      REQUIRE_FALSE(none);
      CHECK(none.error().code == errc::invalid_argument);
      CHECK(none.error().to_string().find("blk.0.attn_q.weight") != std::string::npos);
      CHECK(none.error().to_string().find(part) != std::string::npos);
    }
  };
  tensor_moments wrong = *moments;
  wrong.matrices[0].n = 512;
  wrong.matrices[0].sums.resize(512 * 512);
  refused(wrong, "512 numbers for 256");
  wrong.matrices[0].n = 256;
  refused(wrong, "262144 numbers for 65536");
  wrong.matrices[0].sums.resize(100);
  refused(wrong, "100 numbers for 65536");
  wrong.matrices.clear();
  refused(wrong, "0 numbers for 256");
  wrong = *moments;
  wrong.matrices[0].sums[3 * 256 + 3] = -1;
  refused(wrong, "channel 3");
  wrong.matrices[0].sums[3 * 256 + 3] = std::numeric_limits<float>::quiet_NaN();
  refused(wrong, "channel 3");
  activations["blk.0.attn_q.weight"] = moments;
  options.type = [](std::string_view) { return dtype::q4_0; };
  CHECK(find_awq_scales(file, activations, options).has_value());
}
