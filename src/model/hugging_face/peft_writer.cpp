#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/model/adapter_archive.hpp"
#include "src/io/reading.hpp"
#include "src/model/adapter_tensors.hpp"
#include "src/model/hugging_face/peft.hpp"
#include "src/model/hugging_face/stored_tensors.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

constexpr const char* in_front = "base_model.model.";

/// "model.layers.0.self_attn.q_proj.weight" without its ending, and the last part of that.
std::string module_of(const std::string& weight) {
  constexpr std::string_view ending = ".weight";
  return weight.ends_with(ending) ? weight.substr(0, weight.size() - ending.size()) : weight;
}
std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

class adapter_folder {
 public:
  adapter_folder(const io::archive& adapter, const io::archive& base, const layout& names)
      : adapter_(adapter), base_(base), tensors_(adapter, names) {}

  result<void> add(const adapter_change& change) {
    const std::string weight = change.head ? std::string(detail::output_head) : change.weight;
    if (change.what == adapter_change::kind::replace) {
      FLYWHEEL_TRY(const std::string name, tensors_.add_weight(in_front, *adapter_.find(change.a)));
      saved_.insert(last_part(name.substr(0, name.rfind('.'))));
      return {};
    }
    FLYWHEEL_TRY(stored_tensors::way_back back, tensors_.find(weight, base_.find(change.weight)->dims));
    const std::string module = module_of(back.name.full), full = in_front + module;
    const io::tensor_info &a = *adapter_.find(change.a), &b = *adapter_.find(change.b);
    if (back.experts) {
      tensors_.add_experts(full + ".lora_A.weight", a);
      tensors_.add_experts(full + ".lora_B.weight", b);
    } else if (change.what == adapter_change::kind::embedding) {
      tensors_.add_transposed(full + ".lora_embedding_A", a);
      FLYWHEEL_CHECK(tensors_.add(full + ".lora_embedding_B", b, b.dims));
    } else {
      FLYWHEEL_CHECK(tensors_.add(full + ".lora_A.weight", a, a.dims, {}, back.columns));
      FLYWHEEL_CHECK(tensors_.add(full + ".lora_B.weight", b, b.dims, back.rows));
    }
    if (!change.magnitude.empty()) {
      const io::tensor_info& m = *adapter_.find(change.magnitude);
      FLYWHEEL_CHECK(tensors_.add(full + ".lora_magnitude_vector", m, m.dims, back.rows));
      dora_ = true;
    }
    targets_.insert(last_part(module));
    ranks_[module] = change.rank;
    return {};
  }

  result<void> write(const std::filesystem::path& out) {
    FLYWHEEL_TRY(const io::archive stored, tensors_.finish());
    std::vector<dtype> types;
    for (const io::tensor_info& t : stored.tensors()) {
      if (t.type != dtype::f32 && t.type != dtype::f16 && t.type != dtype::bf16)
        return error{errc::unsupported, "PEFT takes F32, F16 and BF16, but this is " + std::string(to_string(t.type)),
                     adapter_.path().string() + ": tensor " + io::detail::in_quotes(t.name)};
      types.push_back(t.type);
    }
    FLYWHEEL_TRY(new_folder folder, new_folder::create(out));
    FLYWHEEL_TRY(const context ctx, context{}.or_default());
    FLYWHEEL_CHECK(write_safetensors(stored, folder.path() / adapter_weights_file, types, ctx, {}));
    FLYWHEEL_CHECK(folder.write(adapter_config_file, configuration().dump(2) + "\n"));
    return folder.finish();
  }

 private:
  [[nodiscard]] nlohmann::ordered_json configuration() const {
    // The rank of most modules; the others are patterns.
    std::map<std::int64_t, std::size_t> counts;
    for (const auto& [module, rank] : ranks_) ++counts[rank];
    const auto most = std::ranges::max_element(counts, {}, [](const auto& c) { return c.second; });
    const std::int64_t rank = most == counts.end() ? 8 : most->first;
    const auto said = adapter_.metadata().number("adapter.lora.alpha");
    const double alpha = said ? *said : 0;
    nlohmann::ordered_json ranks = nlohmann::ordered_json::object(), alphas = ranks;
    for (const auto& [module, r] : ranks_) {
      if (r == rank) continue;
      // Whole names, as expressions; of experts any.
      std::string pattern;
      for (const char c : module) pattern += c == '.' ? std::string("\\.") : std::string(1, c);
      if (const std::size_t at = pattern.find("{}"); at != pattern.npos) pattern.replace(at, 2, "[0-9]+");
      ranks[pattern] = r;
      if (alpha == 0) alphas[pattern] = r;  // GGUF's 0 is a factor of 1
    }
    nlohmann::ordered_json c;
    c["peft_type"] = "LORA";
    c["task_type"] = "CAUSAL_LM";
    const auto base = base_.metadata().string("general.name");
    c["base_model_name_or_path"] = base && io::detail::valid_utf8(*base) ? std::string(*base) : std::string();
    c["inference_mode"] = true;
    c["r"] = rank;
    c["lora_alpha"] = alpha == 0 ? static_cast<double>(rank) : alpha;
    c["lora_dropout"] = 0.0;
    c["bias"] = "none";
    c["fan_in_fan_out"] = false;
    c["use_rslora"] = false;
    c["use_dora"] = dora_;
    c["target_modules"] = targets_;
    c["modules_to_save"] = saved_.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(saved_);
    c["rank_pattern"] = std::move(ranks);
    c["alpha_pattern"] = std::move(alphas);
    return c;
  }

  const io::archive& adapter_;
  const io::archive& base_;
  stored_tensors tensors_;
  std::set<std::string> targets_, saved_;
  std::map<std::string, std::int64_t> ranks_;  ///< By module.
  bool dora_ = false;
};

}  // namespace

result<void> write_adapter_folder(const io::archive& adapter, const io::archive& base,
                                  std::span<const adapter_change> changes, const std::filesystem::path& out) {
  FLYWHEEL_TRY(const layout names, layout::of(base.metadata(), base.path().string()));
  adapter_folder folder(adapter, base, names);
  for (const adapter_change& change : changes) FLYWHEEL_CHECK(folder.add(change));
  return folder.write(out);
}

}  // namespace flywheel::inline v0::hugging_face
