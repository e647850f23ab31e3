#include "src/model/hugging_face/model_builder.hpp"

#include <algorithm>
#include <charconv>
#include <tuple>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/model/adapter_tensors.hpp"
#include "src/model/hugging_face/family.hpp"
#include "src/model/hugging_face/names.hpp"
#include "src/model/tensor_types.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

/// Tensors come in the order in which a forward pass uses them: embeddings, layers by number, output.
std::tuple<int, std::int64_t> place_of(std::string_view name) noexcept {
  if (name == "token_embd.weight") return {-1, 0};
  if (!name.starts_with("blk.")) return {name.starts_with("output") || name.starts_with("cls") ? 2 : 0, 0};
  std::int64_t layer = 0;
  std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return {1, layer};
}

}  // namespace

model_builder::model_builder(const folder& from, const hugging_face::config& config, const hugging_face::family& f)
    : folder_(from),
      config_(config),
      family_(f),
      prefix_(std::string(f.architecture) + "."),
      computed_(std::make_shared<io::computed_source>()) {}

error model_builder::wrong(const io::tensor_info& tensor, std::string message) const {
  return {errc::malformed, std::move(message),
          folder_.path().string() + ": tensor " + io::detail::in_quotes(tensor.name)};
}

result<void> model_builder::check_weight(const io::tensor_info& tensor) const {
  if (tensor.type != dtype::f32 && tensor.type != dtype::f16 && tensor.type != dtype::bf16) {
    error e = wrong(tensor, "weights of type " + std::string(to_string(tensor.type)) +
                                " cannot be translated; known are F32, F16 and BF16" +
                                (config_.has("quantization_config") ? ", so take the model without quantization" : ""));
    e.code = errc::unsupported;
    return e;
  }
  if (tensor.dims.elements() == 0) return wrong(tensor, "the tensor is empty");
  return {};
}

result<void> model_builder::add(std::string name, const io::tensor_info& tensor) {
  return add(std::move(name), tensor, tensor.dims);
}

result<void> model_builder::add(std::string name, const io::tensor_info& tensor, const shape& dims) {
  return add(std::move(name), dims, {.from = {tensor}, .cols = std::max<std::int64_t>(1, dims.cols())});
}

result<void> model_builder::add(std::string name, const shape& dims, gathered_rows rows) {
  if (record_ != nullptr) {
    record_->push_back({std::move(name), dims, -1, std::move(rows.row), std::move(rows.column), std::move(rows.value),
                        std::move(rows.inverse)});
    return {};
  }
  const io::tensor_info first = rows.from.front();
  std::int64_t elements = 0;
  for (const io::tensor_info& source : rows.from) {
    FLYWHEEL_CHECK(check_weight(source));
    if (source.type != first.type || source.dims != first.dims)
      return wrong(source, "the tensor differs in type or shape from " + io::detail::in_quotes(first.name));
    elements += source.dims.elements();
  }
  if (dims.rank() == 0) return wrong(first, "the tensor is a single number");
  const bool cut = elements != dims.elements();  // `row` picks some of the rows
  const dtype type =
      detail::stays_f32(detail::split_adapter_tensor(name).weight, dims.rank()) || rows.value ? dtype::f32 : first.type;
  if (!rows.row && !rows.column && !rows.value && !cut && rows.from.size() == 1 && type == first.type) {
    io::tensor_info same = first;
    same.name = std::move(name);
    same.dims = dims;
    tensors_.push_back(std::move(same));
    return {};
  }
  const std::int64_t cols = rows.cols;
  add_computed(std::move(name), type, dims, cols, make_gathered(folder_.weights(), std::move(rows), type));
  return {};
}

void model_builder::add_computed(std::string name, dtype type, const shape& dims, std::int64_t cols,
                                 std::unique_ptr<io::computed_tensor> tensor) {
  if (record_ != nullptr) return;
  io::tensor_info made;
  made.name = std::move(name);
  made.type = type;
  made.dims = dims;
  const std::size_t row = row_bytes(type, cols);
  const std::int64_t rows = dims.elements() / cols;
  made.bytes = static_cast<std::uint64_t>(rows) * row;
  made.offset = computed_->add(std::move(tensor), rows, row);
  made.part = static_cast<std::uint32_t>(folder_.weights().sources().size());
  tensors_.push_back(std::move(made));
}

void model_builder::add_values(std::string name, std::vector<float> values) {
  const auto n = static_cast<std::int64_t>(values.size());
  add_computed(std::move(name), dtype::f32, {n}, n, io::make_constant(std::move(values)));
}

result<void> model_builder::add_expert(const std::string& name, std::int64_t number, const io::tensor_info& tensor) {
  if (!experts_[name].emplace(number, tensor).second) return wrong(tensor, "there are two experts with this number");
  return {};
}

const io::tensor_info* model_builder::sibling(const io::tensor_info& tensor, std::string_view ending,
                                              std::string_view other) const {
  std::string name = tensor.name;
  if (!name.ends_with(ending)) return nullptr;
  return folder_.weights().find(name.replace(name.size() - ending.size(), ending.size(), other));
}

result<std::int64_t> model_builder::embedding_rows() const {
  for (const io::tensor_info& t : tensors_) {
    if (t.name != "token_embd.weight") continue;
    if (t.dims.rank() == 2 && t.dims[1] == config_.required("hidden_size|n_embd")) return t.dims[0];
    return wrong(t, "the shape " + t.dims.to_string() + " does not fit the hidden size of config.json");
  }
  return error{errc::malformed, "the weights have no embedding table; is a file missing?", folder_.path().string()};
}

result<io::archive> model_builder::finish() {
  for (auto& [name, matrices] : experts_) {
    gathered_rows rows;
    for (auto& [number, tensor] : matrices) {
      if (number != static_cast<std::int64_t>(rows.from.size()))
        return wrong(tensor, "expert " + std::to_string(rows.from.size()) + " before it is missing");
      rows.from.push_back(tensor);
    }
    const io::tensor_info& first = rows.from.front();
    if (const auto count = config_.count("num_local_experts|num_experts"); count && *count != rows.from.size())
      return wrong(first, "there are " + std::to_string(rows.from.size()) + " experts, but config.json says " +
                              std::to_string(*count));
    if (first.dims.rank() != 2) return wrong(first, "an expert must be a matrix");
    rows.cols = first.dims[1];
    const shape dims{static_cast<std::int64_t>(rows.from.size()), first.dims[0], first.dims[1]};
    FLYWHEEL_CHECK(add(name, dims, std::move(rows)));
  }
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const io::tensor_info& a, const io::tensor_info& b) {
    return place_of(a.name) < place_of(b.name);
  });
  io::archive_content content;
  content.metadata = std::move(metadata);
  content.tensors = std::move(tensors_);
  const auto files = folder_.weights().sources();
  content.sources.assign(files.begin(), files.end());
  content.sources.push_back(computed_);
  content.path = folder_.path();
  content.file_bytes = folder_.weights().file_bytes();
  content.files = folder_.weights().parts();
  return io::archive::assemble(std::move(content));
}

}  // namespace flywheel::inline v0::hugging_face
