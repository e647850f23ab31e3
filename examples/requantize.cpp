// Writes a copy of a GGUF file with its matrices in another tensor format, rounded plainly, one piece at a time:
// neither the model nor a whole tensor is ever in memory. The embedded default was made with it:
//   example-requantize tiny-base-f16.gguf tiny-base-q8_0.gguf q8_0
#include <algorithm>
#include <iostream>
#include <vector>

#include "flywheel/flywheel.hpp"
#include "flywheel/formats/formats.hpp"

namespace {

using namespace flywheel;

/// general.file_type of a file whose matrices are mostly of one type (GGUF specification); -1: has none.
int file_type(dtype type) {
  switch (type) {
    case dtype::f32:
      return 0;
    case dtype::f16:
      return 1;
    case dtype::q4_0:
      return 2;
    case dtype::q4_1:
      return 3;
    case dtype::q8_0:
      return 7;
    case dtype::q5_0:
      return 8;
    case dtype::q5_1:
      return 9;
    case dtype::bf16:
      return 32;
    default:
      return -1;
  }
}

/// Matrices change their type where their rows are whole blocks and both codecs exist; norms and the rest stay.
bool changes(const io::tensor_info& tensor, const dtype_info& wanted) {
  return tensor.dims.rank() == 2 && tensor.dims.cols() % wanted.block_elements == 0 &&
         formats::find_decoder(tensor.type);
}

/// Copies a tensor's bytes as they are.
result<void> copy(const io::archive& source, const io::tensor_info& tensor, io::writer& target) {
  std::vector<std::byte> piece;
  for (std::uint64_t done = 0; done < tensor.bytes; done += piece.size()) {
    piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(tensor.bytes - done, 1 << 20)));
    if (auto read = source.read(tensor, done, piece); !read) return read.error();
    if (auto written = target.write(piece); !written) return written.error();
  }
  return {};
}

/// Decodes and encodes a tensor, some rows at a time.
result<void> convert(const io::archive& source, const io::tensor_info& tensor, dtype type, io::writer& target) {
  const std::int64_t rows = tensor.dims.rows(), cols = tensor.dims.cols();
  const std::int64_t step = std::max<std::int64_t>(1, (1 << 18) / std::max<std::int64_t>(cols, 1));
  std::vector<std::byte> stored, encoded;
  std::vector<float> values;
  for (std::int64_t r = 0; r < rows; r += step) {
    const std::int64_t elements = cols * std::min(step, rows - r);
    stored.resize(row_bytes(tensor.type, elements));
    encoded.resize(row_bytes(type, elements));
    values.resize(static_cast<std::size_t>(elements));
    if (auto read = source.read(tensor, row_bytes(tensor.type, cols * r), stored); !read) return read.error();
    formats::find_decoder(tensor.type)(stored.data(), elements, values.data());
    formats::find_encoder(type)(values.data(), elements, encoded.data());
    if (auto written = target.write(encoded); !written) return written.error();
  }
  return {};
}

result<void> requantize(const char* from, const char* to, const dtype_info& wanted) {
  if (!formats::find_encoder(wanted.type))
    return error{errc::unsupported, "this version cannot encode the format", std::string(wanted.name)};
  auto source = io::archive::open(from);
  if (!source) return source.error();

  io::metadata metadata = source->metadata();
  for (const char* key : {"split.no", "split.count", "split.tensors.count"}) metadata.erase(key);  // one file comes out
  if (const int type = file_type(wanted.type); type >= 0)
    metadata.set("general.file_type", static_cast<std::uint32_t>(type));
  else
    metadata.erase("general.file_type");

  std::vector<io::tensor_plan> plan;
  for (const io::tensor_info& tensor : source->tensors())
    plan.push_back(changes(tensor, wanted) ? io::tensor_plan{tensor.name, wanted.type, tensor.dims, 0}
                                           : io::tensor_plan{tensor.name, tensor.type, tensor.dims, tensor.bytes});
  auto target = io::writer::create(to, io::container::gguf, metadata, plan);
  if (!target) return target.error();
  for (const io::tensor_info& tensor : source->tensors()) {
    auto written =
        changes(tensor, wanted) ? convert(*source, tensor, wanted.type, *target) : copy(*source, tensor, *target);
    if (!written) return written.error();
  }
  return target->finish();
}

}  // namespace

int main(int argc, char** argv) {
  const dtype_info* wanted = argc == 4 ? find_dtype(argv[3]) : nullptr;
  if (!wanted) {
    std::cerr << "usage: requantize IN.gguf OUT.gguf TYPE     (such as q8_0)\n";
    return 2;
  }
  if (const auto done = requantize(argv[1], argv[2], *wanted); !done) {
    std::cerr << done.error().to_string() << '\n';
    return 1;
  }
}
