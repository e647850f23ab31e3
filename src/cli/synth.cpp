// flywheel synth: a random-weight model of a known shape, so that engines can be measured on the same file without
// downloading weights. It babbles, but takes the time and the memory of the real one.
#include "cli/synth.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/io/writer.hpp"
#include "src/measure/random_weights.hpp"

namespace flywheel::cli {
namespace {

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

void write_tensor(io::writer& out, measure::random_bits& random, const io::tensor_plan& plan) {
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
      measure::fill_random_rows(random, plan.type, plan.dims.cols(), deviation, bytes);
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
  const model_shape* s = find_model_shape(args.shape);
  if (s == nullptr) throw usage_error("SHAPE", "unknown shape '" + args.shape + "'; known: " + model_shape_names());
  const dtype type = synthetic_type(args.type, *s, "TYPE");
  const interrupt stop;
  const std::int64_t all = write_synthetic(*s, type, args.out, args.seed, stop);
  if (args.json)
    print_line(dump({{"file", args.out}, {"shape", s->name}, {"type", to_string(type)}, {"parameters", all}}));
  else
    print_line(args.out + ": " + s->name + ", " + grouped(all) + " random parameters in " +
               std::string(to_string(type)));
  return success;
}

}  // namespace

const model_shape* find_model_shape(std::string_view name) noexcept {
  const auto* found =
      std::find_if(std::begin(shapes), std::end(shapes), [&](const model_shape& s) { return name == s.name; });
  return found == std::end(shapes) ? nullptr : found;
}

std::string model_shape_names() {
  std::string all;
  for (const model_shape& s : shapes) all += (all.empty() ? "" : ", ") + std::string(s.name);
  return all;
}

dtype synthetic_type(const std::string& name, const model_shape& s, const std::string& option) {
  const dtype_info* type = find_dtype(name);
  if (type == nullptr || !measure::can_make_rows(type->type))
    throw usage_error(option, "cannot make weights of type '" + name + "'");
  for (const io::tensor_plan& p : tensors_of(s, type->type))
    if (p.dims.cols() % info(p.type)->block_elements != 0)
      throw usage_error(
          option, "rows of " + std::to_string(p.dims.cols()) + " are not whole blocks of " + std::string(type->name));
  return type->type;
}

std::int64_t write_synthetic(const model_shape& s, dtype type, const std::string& path, std::uint64_t seed,
                             const interrupt& stop) {
  const std::vector<io::tensor_plan> plans = tensors_of(s, type);
  io::metadata meta = metadata_of(s);
  io::writer out = io::writer::create(path, io::container::gguf, meta, plans).value();
  progress_bar bar("writing " + path);
  measure::random_bits random(seed);
  std::int64_t done = 0, all = 0;
  for (const io::tensor_plan& p : plans) all += p.dims.elements();
  for (const io::tensor_plan& p : plans) {
    if (stop.requested()) fail(errc::cancelled, path, "stopped");
    write_tensor(out, random, p);
    bar.update(static_cast<std::uint64_t>(done += p.dims.elements()), static_cast<std::uint64_t>(all));
  }
  out.finish().value();
  return all;
}

action synth_command(CLI::App& app) {
  auto args = std::make_shared<synth_args>();
  app.add_option("SHAPE", args->shape, "One of " + model_shape_names())->required();
  app.add_option("TYPE", args->type, "Type of all matrices: f16, q8_0, q4_0, q4_k, ...")->required();
  app.add_option("OUT", args->out, "GGUF file to write")->required();
  app.add_option("--seed", args->seed, "Another seed, other weights")->check(CLI::NonNegativeNumber);
  app.add_flag("--json", args->json, "Describe what was written on stdout");
  app.footer(
      "Example:\n  flywheel synth tinyllama-1.1b q4_0 /tmp/1b.gguf\n  flywheel run /tmp/1b.gguf --ids 1,300,301 -n 64 "
      "--ignore-eos");
  return [args] { return synth(*args); };
}

}  // namespace flywheel::cli
