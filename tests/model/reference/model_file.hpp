// What the reference passes read: a model's metadata and its tensors in double precision, from a GGUF file or from the
// values a test made up.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/io/archive.hpp"
#include "support/tiny_model.hpp"

namespace flywheel::test::reference {

using vec = std::vector<double>;
using rows = std::vector<vec>;  ///< [tokens][width], unless said otherwise.

/// Values [.., rows, cols], the last extent contiguous.
struct tensor {
  vec values;
  std::size_t cols = 0;
  [[nodiscard]] std::size_t row_count() const { return values.size() / cols; }
  /// Rows [first, first + count) as a tensor of their own: a part of a fused matrix, an expert.
  [[nodiscard]] tensor slice(std::size_t first, std::size_t count) const {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(first * cols);
    return {vec(begin, begin + static_cast<std::ptrdiff_t>(count * cols)), cols};
  }
};

class model_file {
 public:
  explicit model_file(const std::filesystem::path& path) {
    const io::archive file = io::archive::open(path).value();
    meta_ = file.metadata();
    for (const io::tensor_info& info : file.tensors()) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(info.bytes));
      file.read(info, 0, bytes).value();
      std::vector<float> values(static_cast<std::size_t>(info.dims.elements()));
      formats::find_decoder(info.type)(bytes.data(), info.dims.elements(), values.data());
      add(info.name, info.dims, values);
    }
  }
  model_file(io::metadata meta, std::span<const tiny_tensor> tensors) : meta_(std::move(meta)) {
    for (const tiny_tensor& t : tensors) add(t.plan.name, t.plan.dims, t.values);
  }

  [[nodiscard]] std::string architecture() const { return std::string(meta_.string("general.architecture").value()); }
  [[nodiscard]] bool has_key(std::string_view name) const { return meta_.contains(key(name)); }
  [[nodiscard]] double number(std::string_view name) const { return meta_.number(key(name)).value(); }
  [[nodiscard]] double number(std::string_view name, double otherwise) const {
    return has_key(name) ? number(name) : otherwise;
  }
  [[nodiscard]] std::size_t count(std::string_view name) const { return static_cast<std::size_t>(number(name)); }
  [[nodiscard]] std::size_t count(std::string_view name, std::size_t otherwise) const {
    return has_key(name) ? count(name) : otherwise;
  }
  /// An array's element, or the number that all layers share.
  [[nodiscard]] std::size_t layer_count(std::string_view name, std::size_t layer) const {
    const auto array = meta_.integers(key(name));
    return array ? static_cast<std::size_t>(array.value().at(layer)) : count(name);
  }
  [[nodiscard]] bool layer_flag(std::string_view name, std::size_t layer) const {
    return std::get<std::vector<bool>>(*meta_.find(key(name))).at(layer);
  }
  [[nodiscard]] std::string text(std::string_view name, std::string_view otherwise) const {
    return std::string(has_key(name) ? meta_.string(key(name)).value() : otherwise);
  }

  [[nodiscard]] bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  [[nodiscard]] const tensor& get(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw std::runtime_error("no tensor " + name);
    return found->second;
  }
  [[nodiscard]] const vec& values(const std::string& name) const { return get(name).values; }
  /// Empty when there is no such tensor: an optional bias.
  [[nodiscard]] vec values_or_none(const std::string& name) const { return has(name) ? values(name) : vec{}; }

 private:
  [[nodiscard]] std::string key(std::string_view name) const { return architecture() + "." + std::string(name); }
  void add(const std::string& name, const shape& dims, std::span<const float> values) {
    tensors_[name] = {vec(values.begin(), values.end()), static_cast<std::size_t>(dims.cols())};
  }

  io::metadata meta_;
  std::map<std::string, tensor> tensors_;
};

}  // namespace flywheel::test::reference
