// flywheel dequantize: one tensor as raw little-endian 32-bit floats, a few rows at a time.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/args.hpp"
#include "cli/command.hpp"
#include "cli/output.hpp"
#include "cli/progress_bar.hpp"
#include "flywheel/formats/formats.hpp"
#include "flywheel/model/open.hpp"

namespace flywheel::cli {
namespace {

struct dequantize_args {
  std::string path, tensor, out;
  bool json = false;
};

int dequantize(const dequantize_args& args) {
  const io::archive file = open_model_archive(args.path).value();
  const io::tensor_info* found = file.find(args.tensor);
  if (found == nullptr)
    fail(errc::not_found, args.path, "has no tensor '" + args.tensor + "'; 'flywheel inspect' lists the names");
  const dtype_info* facts = info(found->type);
  const formats::decode_fn decode = facts ? formats::find_decoder(found->type) : nullptr;
  if (decode == nullptr)
    fail(errc::unsupported, args.tensor,
         "tensor type " + (facts ? std::string(facts->name) : std::to_string(static_cast<std::uint32_t>(found->type))) +
             " is unsupported: this version has no decoder for it");

  interrupt stop;
  output_file out(args.out);
  progress_bar bar("dequantizing " + args.tensor);
  // About a million values at a time, whole blocks; one row at a time where rows have a scale.
  const bool rows = facts->kind == dtype_kind::row;
  const auto cols = static_cast<std::uint64_t>(found->dims.cols());
  const std::uint64_t block_bytes = rows ? row_bytes(found->type, found->dims.cols()) : facts->block_bytes;
  const std::uint64_t block_elements = rows ? cols : facts->block_elements;
  const std::uint64_t blocks = found->bytes / block_bytes;
  const std::uint64_t step = rows ? 1 : std::max<std::uint64_t>(1, (std::uint64_t{1} << 20) / block_elements);
  std::vector<std::byte> bytes;
  std::vector<float> values;
  for (std::uint64_t first = 0; first < blocks; first += step) {
    if (stop.requested()) fail(errc::cancelled, args.out, "stopped");
    const std::uint64_t count = std::min(step, blocks - first);
    bytes.resize(count * block_bytes);
    values.resize(count * block_elements);
    file.read(*found, first * block_bytes, bytes).value();
    decode(bytes.data(), static_cast<std::int64_t>(values.size()), values.data());
    out.write(std::span<const float>(values));
    bar.update(first + count, blocks);
  }
  bar.clear();
  out.finish();
  if (args.json)
    print_line(dump({{"file", args.out},
                     {"tensor", args.tensor},
                     {"type", facts->name},
                     {"shape", std::vector<std::int64_t>(found->dims.dims().begin(), found->dims.dims().end())},
                     {"dtype", "f32"},
                     {"byte_order", "little"},
                     {"values", found->dims.elements()}}));
  return success;
}

}  // namespace

action dequantize_command(CLI::App& app) {
  auto args = std::make_shared<dequantize_args>();
  app.add_option("FILE", args->path, "GGUF or safetensors file")->required();
  app.add_option("TENSOR", args->tensor, "Name of the tensor")->required();
  app.add_option("--out", args->out, "File to write: little-endian f32 values, row by row")->required();
  app.add_flag("--json", args->json, "Describe what was written on stdout");
  app.footer("Example:\n  flywheel dequantize model.gguf blk.0.attn_q.weight --out q.f32");
  return [args] { return dequantize(*args); };
}

}  // namespace flywheel::cli
