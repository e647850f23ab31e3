// flywheel synth: a random-weight model of a known shape, so that engines can be measured on the same file without
// downloading weights. It babbles, but takes the time and the memory of the real one.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/formats/half.hpp"
#include "flywheel/io/writer.hpp"

namespace flywheel::cli {
namespace {

struct model_shape {
  const char* name;
  const char* architecture;
  std::int32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab, context;
  float rope_base;
  std::int32_t experts, experts_used;
  bool tied;
};

// Numbers from the models' published configurations; moe-small and tiny are ours.
constexpr model_shape shapes[] = {
    {"tinyllama-1.1b", "llama", 2048, 22, 32, 4, 64, 5632, 32000, 2048, 10000, 0, 0, false},
    {"llama-3.2-1b", "llama", 2048, 16, 32, 8, 64, 8192, 128256, 131072, 500000, 0, 0, true},
    {"llama-3.2-3b", "llama", 3072, 28, 24, 8, 128, 8192, 128256, 131072, 500000, 0, 0, true},
    {"llama-3.1-8b", "llama", 4096, 32, 32, 8, 128, 14336, 128256, 131072, 500000, 0, 0, false},
    {"qwen3-0.6b", "qwen3", 1024, 28, 16, 8, 128, 3072, 151936, 40960, 1000000, 0, 0, true},
    {"moe-small", "llama", 1024, 12, 16, 4, 64, 1792, 32000, 4096, 10000, 8, 2, false},
    {"tiny", "llama", 256, 2, 8, 4, 32, 512, 1000, 512, 10000, 0, 0, true},
};

/// Where a block holds its f16 scales (a row of a dtype of kind row its f32 scale), and the standard deviation of what
/// random bits decode to with scales of 1. `offset` (where it exists) is set to minus `centre` times the scale, so that
/// values have mean 0.
struct block_recipe {
  dtype type;
  std::size_t scale;
  std::ptrdiff_t offset;  ///< -1: none.
  float deviation, centre;
};
constexpr block_recipe recipes[] = {
    {dtype::q4_0, 0, -1, 4.6F, 0},       {dtype::q4_1, 0, 2, 4.6F, 7.5F},  {dtype::q5_0, 0, -1, 9.2F, 0},
    {dtype::q5_1, 0, 2, 9.2F, 15.5F},    {dtype::q8_0, 0, -1, 74, 0},      {dtype::q2_k, 80, 82, 13, -1.5F},
    {dtype::q3_k, 108, -1, 42, 0},       {dtype::q4_k, 0, 2, 260, -7.5F},  {dtype::q5_k, 0, 2, 520, -15.5F},
    {dtype::q6_k, 208, -1, 1370, 0},     {dtype::iq4_nl, 0, -1, 70, 0},    {dtype::iq4_xs, 0, -1, 1290, 0},
    {dtype::q8_g128, 0, -1, 74, 0},      {dtype::q4_g128, 0, -1, 4.6F, 0}, {dtype::q8_channel, 0, -1, 74, 0},
    {dtype::q4_channel, 0, -1, 4.6F, 0},
};

/// splitmix64 (Steele et al. 2014): the same file on every machine.
class random_bits {
 public:
  explicit random_bits(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  void fill(std::span<std::byte> out) {
    std::size_t i = 0;
    for (; i + 8 <= out.size(); i += 8) {
      const std::uint64_t bits = next();
      std::memcpy(out.data() + i, &bits, 8);
    }
    for (; i < out.size(); ++i) out[i] = static_cast<std::byte>(next());
  }
  /// Uniform with standard deviation 1.
  float number() { return (static_cast<float>(next() >> 40) * 0x1p-24F - 0.5F) * 3.4641016F; }

 private:
  std::uint64_t state_;
};

const block_recipe* recipe_of(dtype type) {
  for (const block_recipe& r : recipes)
    if (r.type == type) return &r;
  return nullptr;
}

bool can_make(dtype type) { return recipe_of(type) != nullptr || formats::find_encoder(type) != nullptr; }

/// Random rows of `cols` elements whose values have the given standard deviation.
void fill_rows(random_bits& random, dtype type, std::int64_t cols, float deviation, std::span<std::byte> out) {
  const dtype_info& facts = *info(type);
  if (const block_recipe* r = recipe_of(type)) {
    random.fill(out);
    if (facts.kind == dtype_kind::row) {
      const float scale = deviation / r->deviation;
      for (std::size_t at = 0; at < out.size(); at += row_bytes(type, cols))
        std::memcpy(out.data() + at + r->scale, &scale, sizeof scale);
      return;
    }
    const std::uint16_t scale = formats::f32_to_f16(deviation / r->deviation);
    const std::uint16_t offset = formats::f32_to_f16(-r->centre * deviation / r->deviation);
    for (std::size_t at = 0; at < out.size(); at += facts.block_bytes) {
      std::memcpy(out.data() + at + r->scale, &scale, sizeof scale);
      if (r->offset >= 0) std::memcpy(out.data() + at + static_cast<std::size_t>(r->offset), &offset, sizeof offset);
    }
    return;
  }
  const std::size_t count = out.size() / facts.block_bytes * facts.block_elements;
  std::vector<float> values(count);
  for (float& v : values) v = random.number() * deviation;
  formats::find_encoder(type)(values.data(), static_cast<std::int64_t>(count), out.data());
}

/// A SentencePiece vocabulary that any engine loads: bytes, then made-up words.
void add_vocabulary(io::metadata& meta, std::int32_t size) {
  std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) {
    constexpr const char* digits = "0123456789ABCDEF";
    pieces.push_back(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
  }
  for (int i = 0; static_cast<std::int32_t>(pieces.size()) < size; ++i) {
    std::string word = "\xE2\x96\x81";  // U+2581, the mark of a space
    for (int rest = i; rest >= 0; rest = rest / 26 - 1) word += static_cast<char>('a' + rest % 26);
    pieces.push_back(std::move(word));
  }
  std::vector<float> scores(pieces.size());
  std::vector<std::int32_t> kinds(pieces.size(), 1);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    kinds[i] = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1;
    scores[i] = i < 259 ? 0.0F : -static_cast<float>(i);
  }
  meta.set("tokenizer.ggml.model", std::string("llama"));
  meta.set("tokenizer.ggml.tokens", std::move(pieces));
  meta.set("tokenizer.ggml.scores", std::move(scores));
  meta.set("tokenizer.ggml.token_type", std::move(kinds));
  meta.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
  meta.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
  meta.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
}

io::metadata metadata_of(const model_shape& s) {
  io::metadata meta;
  const auto number = [&](const std::string& key, std::int32_t value) {
    meta.set(s.architecture + ("." + key), static_cast<std::uint32_t>(value));
  };
  meta.set("general.architecture", std::string(s.architecture));
  meta.set("general.name", std::string(s.name) + " (random weights)");
  number("context_length", s.context);
  number("embedding_length", s.hidden);
  number("block_count", s.layers);
  number("feed_forward_length", s.ffn);
  number("attention.head_count", s.heads);
  number("attention.head_count_kv", s.kv_heads);
  number("attention.key_length", s.head_dim);
  number("attention.value_length", s.head_dim);
  number("rope.dimension_count", s.head_dim);
  number("vocab_size", s.vocab);
  meta.set(s.architecture + std::string(".attention.layer_norm_rms_epsilon"), 1e-5F);
  meta.set(s.architecture + std::string(".rope.freq_base"), s.rope_base);
  if (s.experts > 0) {
    number("expert_count", s.experts);
    number("expert_used_count", s.experts_used);
  }
  add_vocabulary(meta, s.vocab);
  return meta;
}

std::vector<io::tensor_plan> tensors_of(const model_shape& s, dtype type) {
  std::vector<io::tensor_plan> plans;
  const auto add = [&](std::string name, shape dims, bool matrix = true) {
    plans.push_back({std::move(name), matrix ? type : dtype::f32, dims, 0});
  };
  const std::int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  const bool head_norms = std::string_view(s.architecture) == "qwen3";
  add("token_embd.weight", {s.vocab, s.hidden});
  for (std::int32_t layer = 0; layer < s.layers; ++layer) {
    const std::string block = "blk." + std::to_string(layer) + ".";
    add(block + "attn_norm.weight", {s.hidden}, false);
    add(block + "attn_q.weight", {q, s.hidden});
    add(block + "attn_k.weight", {kv, s.hidden});
    add(block + "attn_v.weight", {kv, s.hidden});
    add(block + "attn_output.weight", {s.hidden, q});
    if (head_norms) {
      add(block + "attn_q_norm.weight", {s.head_dim}, false);
      add(block + "attn_k_norm.weight", {s.head_dim}, false);
    }
    add(block + "ffn_norm.weight", {s.hidden}, false);
    if (s.experts > 0) {
      plans.push_back({block + "ffn_gate_inp.weight", dtype::f32, {s.experts, s.hidden}, 0});
      add(block + "ffn_gate_exps.weight", {s.experts, s.ffn, s.hidden});
      add(block + "ffn_up_exps.weight", {s.experts, s.ffn, s.hidden});
      add(block + "ffn_down_exps.weight", {s.experts, s.hidden, s.ffn});
    } else {
      add(block + "ffn_gate.weight", {s.ffn, s.hidden});
      add(block + "ffn_up.weight", {s.ffn, s.hidden});
      add(block + "ffn_down.weight", {s.hidden, s.ffn});
    }
  }
  add("output_norm.weight", {s.hidden}, false);
  if (!s.tied) add("output.weight", {s.vocab, s.hidden});
  return plans;
}

void write_tensor(io::writer& out, random_bits& random, const io::tensor_plan& plan) {
  const std::size_t row = row_bytes(plan.type, plan.dims.cols());
  const std::int64_t rows_at_once = std::max<std::int64_t>(1, (std::int64_t{1} << 22) / static_cast<std::int64_t>(row));
  const bool norm = plan.dims.rank() == 1;
  const float deviation = 1.0F / std::sqrt(static_cast<float>(plan.dims.cols()));
  std::vector<std::byte> bytes;
  for (std::int64_t at = 0; at < plan.dims.rows(); at += rows_at_once) {
    bytes.resize(static_cast<std::size_t>(std::min(rows_at_once, plan.dims.rows() - at)) * row);
    if (norm) {
      const std::vector<float> ones(static_cast<std::size_t>(plan.dims.cols()), 1.0F);
      std::memcpy(bytes.data(), ones.data(), bytes.size());
    } else {
      fill_rows(random, plan.type, plan.dims.cols(), deviation, bytes);
    }
    out.write(bytes).value();
  }
}

struct synth_args {
  std::string shape, type, out;
  std::uint64_t seed = 1;
  bool json = false;
};

int synth(const synth_args& args) {
  const auto* s =
      std::find_if(std::begin(shapes), std::end(shapes), [&](const model_shape& x) { return args.shape == x.name; });
  if (s == std::end(shapes)) {
    std::string known;
    for (const model_shape& x : shapes) known += (known.empty() ? "" : ", ") + std::string(x.name);
    throw usage_error("SHAPE", "unknown shape '" + args.shape + "'; known: " + known);
  }
  const dtype_info* type = find_dtype(args.type);
  if (type == nullptr || !can_make(type->type))
    throw usage_error("TYPE", "cannot make weights of type '" + args.type + "'");

  interrupt stop;
  const std::vector<io::tensor_plan> plans = tensors_of(*s, type->type);
  for (const io::tensor_plan& p : plans)
    if (p.dims.cols() % info(p.type)->block_elements != 0)
      throw usage_error(
          "TYPE", "rows of " + std::to_string(p.dims.cols()) + " are not whole blocks of " + std::string(type->name));
  io::metadata meta = metadata_of(*s);
  io::writer out = io::writer::create(args.out, io::container::gguf, meta, plans).value();
  progress_bar bar("writing " + args.out);
  random_bits random(args.seed);
  std::int64_t done = 0, all = 0;
  for (const io::tensor_plan& p : plans) all += p.dims.elements();
  for (const io::tensor_plan& p : plans) {
    if (stop.requested()) fail(errc::cancelled, args.out, "stopped");
    write_tensor(out, random, p);
    bar.update(static_cast<std::uint64_t>(done += p.dims.elements()), static_cast<std::uint64_t>(all));
  }
  out.finish().value();
  bar.clear();
  if (args.json)
    print_line(dump({{"file", args.out}, {"shape", s->name}, {"type", type->name}, {"parameters", all}}));
  else
    print_line(args.out + ": " + s->name + ", " + grouped(all) + " random parameters in " + std::string(type->name));
  return success;
}

}  // namespace

action synth_command(CLI::App& app) {
  auto args = std::make_shared<synth_args>();
  app.add_option("SHAPE", args->shape,
                 "tinyllama-1.1b, llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, qwen3-0.6b, moe-small or tiny")
      ->required();
  app.add_option("TYPE", args->type, "Type of all matrices: f16, q8_0, q4_0, q4_k, ...")->required();
  app.add_option("OUT", args->out, "GGUF file to write")->required();
  app.add_option("--seed", args->seed, "Another seed, other weights");
  app.add_flag("--json", args->json, "Describe what was written on stdout");
  app.footer(
      "Example:\n  flywheel synth tinyllama-1.1b q4_0 /tmp/1b.gguf\n  flywheel run /tmp/1b.gguf --ids 1,300,301 -n 64 "
      "--ignore-eos");
  return [args] { return synth(*args); };
}

}  // namespace flywheel::cli
