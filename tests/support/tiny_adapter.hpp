// Adapters with random factors for tiny models, and the weights that they stand for.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "support/tiny_model.hpp"

namespace flywheel::test {

struct tiny_adapter {
  std::vector<std::string> weights;  ///< "token_embd.weight": of embedding rows; "output.weight": of the head.
  std::int64_t rank = 4;
  float alpha = 8;
  dtype type = dtype::f32;
  bool dora = false;
  std::uint64_t seed = 5;
  float size = 1;  ///< Of the change, in that of the weights.
  std::string architecture = "llama";

  [[nodiscard]] double factor() const {
    return alpha == 0 ? 1.0 : static_cast<double>(alpha) / static_cast<double>(rank);
  }
};

/// As the type stores them.
inline float stored(dtype type, float x) {
  float out = 0;
  std::vector<std::byte> bytes(row_bytes(type, 1));
  formats::find_encoder(type)(&x, 1, bytes.data());
  formats::find_decoder(type)(bytes.data(), 1, &out);
  return out;
}

/// The tensor that a name of an adapter changes: of a tied head the embedding.
inline const tiny_tensor& weight_of(const std::vector<tiny_tensor>& base, const std::string& name) {
  for (const std::string& wanted : {name, std::string("token_embd.weight")})
    for (const tiny_tensor& t : base)
      if (t.plan.name == wanted) return t;
  throw std::invalid_argument("tiny_adapter: no tensor " + name);
}

inline std::vector<tiny_tensor> tiny_adapter_tensors(const tiny_adapter& a, const std::vector<tiny_tensor>& base) {
  std::vector<tiny_tensor> out;
  tiny_random random(a.seed);
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t cols, float scale) {
    tiny_tensor t{{name, a.type, {rows, cols}, 0}, {}};
    t.values.resize(static_cast<std::size_t>(rows * cols));
    for (float& x : t.values) x = stored(a.type, random.normal() * scale);
    out.push_back(std::move(t));
  };
  for (const std::string& name : a.weights) {
    const tiny_tensor& w = weight_of(base, name);
    const std::int64_t n = w.plan.dims[0], k = w.plan.dims[1];
    const bool embedding = name == "token_embd.weight";
    const float scale = a.size / static_cast<float>(a.factor()) / std::sqrt(static_cast<float>(a.rank));
    if (embedding) {
      matrix(name + ".lora_a", n, a.rank, 1);
      matrix(name + ".lora_b", k, a.rank, scale / std::sqrt(static_cast<float>(k)));
    } else {
      matrix(name + ".lora_a", a.rank, k, 1 / std::sqrt(static_cast<float>(k)));
      matrix(name + ".lora_b", n, a.rank, scale);
    }
    if (a.dora) {
      tiny_tensor m{{name + ".lora_magnitude", dtype::f32, {n}, 0}, {}};
      for (std::int64_t i = 0; i < n; ++i) m.values.push_back(1.0F + 0.3F * random.normal());
      out.push_back(std::move(m));
    }
  }
  return out;
}

inline io::metadata tiny_adapter_metadata(const tiny_adapter& a) {
  io::metadata meta;
  meta.set("general.architecture", a.architecture);
  meta.set("general.type", std::string("adapter"));
  meta.set("general.name", std::string("tiny adapter"));
  meta.set("adapter.type", std::string("lora"));
  meta.set("adapter.lora.alpha", a.alpha);
  return meta;
}

inline void write_tiny_adapter(const std::filesystem::path& path, const tiny_adapter& a,
                               const std::vector<tiny_tensor>& base) {
  write_tensors(path, tiny_adapter_metadata(a), tiny_adapter_tensors(a, base));
}

/// What `scale` of the adapter adds to one of its weights, [n, k], in double: see flywheel::adapter.
inline std::vector<double> tiny_change(const tiny_adapter& a, const std::string& name, double scale,
                                       const std::vector<tiny_tensor>& base) {
  const std::vector<tiny_tensor> parts = tiny_adapter_tensors(a, base);
  std::map<std::string, const std::vector<float>*> named;
  for (const tiny_tensor& t : parts) named[t.plan.name] = &t.values;
  const std::vector<float>&A = *named.at(name + ".lora_a"), &B = *named.at(name + ".lora_b");
  const tiny_tensor& w = weight_of(base, name);
  const auto n = static_cast<std::size_t>(w.plan.dims[0]), k = static_cast<std::size_t>(w.plan.dims[1]);
  const auto rank = static_cast<std::size_t>(a.rank);
  std::vector<double> change(n * k);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < k; ++j) {
      double sum = 0;
      for (std::size_t r = 0; r < rank; ++r)
        sum += name == "token_embd.weight" ? static_cast<double>(A[i * rank + r]) * static_cast<double>(B[j * rank + r])
                                           : static_cast<double>(B[i * rank + r]) * static_cast<double>(A[r * k + j]);
      change[i * k + j] = a.factor() * sum;
    }
    if (!a.dora) continue;
    double squares = 0;
    for (std::size_t j = 0; j < k; ++j)
      squares += std::pow(static_cast<double>(w.values[i * k + j]) + change[i * k + j], 2);
    const double length = static_cast<double>((*named.at(name + ".lora_magnitude"))[i]) / std::sqrt(squares);
    for (std::size_t j = 0; j < k; ++j) {
      const double before = static_cast<double>(w.values[i * k + j]);
      change[i * k + j] = length * (before + change[i * k + j]) - before;
    }
  }
  for (double& x : change) x *= scale;
  return change;
}

/// Adds it to the weights of a model.
inline void merge_tiny_adapter(const tiny_adapter& a, double scale, const std::vector<tiny_tensor>& base,
                               std::vector<tiny_tensor>& model) {
  for (const std::string& name : a.weights) {
    const std::vector<double> change = tiny_change(a, name, scale, base);
    for (tiny_tensor& t : model)
      if (t.plan.name == name)
        for (std::size_t i = 0; i < change.size(); ++i)
          t.values[i] = static_cast<float>(static_cast<double>(t.values[i]) + change[i]);
  }
}

}  // namespace flywheel::test
