// Tiny models, adapters beside them, and the same models with the changes in their weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/model/adapter.hpp"
#include "flywheel/model/model.hpp"
#include "flywheel/model/session.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_adapter.hpp"

namespace flywheel::test {

using adapters = std::vector<adapter_use>;

inline const std::vector<std::string> every_product = {
    "blk.0.attn_q.weight",      "blk.0.attn_k.weight",   "blk.0.attn_v.weight",
    "blk.0.attn_output.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight",
    "blk.0.ffn_down.weight",    "blk.1.attn_q.weight",   "blk.1.ffn_up.weight"};

inline tiny_model two_layer_model(bool tied = true) {
  tiny_model m;
  m.layers = 2;
  m.tied = tied;
  return m;
}

inline model open_base(const std::filesystem::path& path, unsigned threads = 1, const char* isa = "") {
  context_options options;
  options.threads = threads;
  options.isa = isa;
  return model::open(path, {context::create(options).value(), {}}).value();
}

inline std::vector<token_id> adapter_ids(std::size_t n, std::uint64_t seed = 1) {
  tiny_random random(seed);
  std::vector<token_id> ids(n);
  for (token_id& id : ids) id = 3 + static_cast<token_id>(random.uniform() * 317);
  return ids;
}

inline session_options exact(adapters used = {}) {
  session_options options;
  options.kv_type = dtype::f32;
  options.adapters = std::move(used);
  return options;
}

/// Logits of every position.
inline std::vector<float> all_logits(const model& m, std::span<const token_id> ids, const adapters& used = {}) {
  session s = m.new_session(exact(used)).value();
  std::vector<float> rows;
  s.prefill_rows(ids, 1, [&](std::size_t, std::span<const float> row) -> result<void> {
     rows.insert(rows.end(), row.begin(), row.end());
     return {};
   }).value();
  return rows;
}

/// Largest difference in standard deviations of `want`.
inline double logits_distance(std::span<const float> got, std::span<const float> want) {
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
inline constexpr double same_logits = 2e-5;
/// What has no effect at all is much smaller than this.
inline constexpr double another_model = 1e-2;

inline std::vector<float> logits_copy(const session& s) { return {s.logits().begin(), s.logits().end()}; }

/// A base, its tensors, and adapters beside it.
struct workshop {
  temp_folder folder;
  tiny_model shape;
  std::vector<tiny_tensor> base;
  std::filesystem::path path;
  std::function<void(io::metadata&, std::vector<tiny_tensor>&)> prepare;

  explicit workshop(const tiny_model& m = two_layer_model(),
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
    return open_base(out);
  }
};

inline error refusal_of(const result<adapter>& r) {
  REQUIRE_FALSE(r);
  return r.error();
}

}  // namespace flywheel::test
