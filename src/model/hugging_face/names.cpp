#include "src/model/hugging_face/names.hpp"

#include <algorithm>
#include <charconv>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"

namespace flywheel::inline v0::hugging_face {
namespace {

using io::detail::in_quotes;

constexpr std::string_view foreign[] = {"vision",     "visual.",       "audio",       "multi_modal_projector.",
                                        "projector.", "patch_merger.", "embed_image", "rotary_emb.inv_freq",
                                        "mtp.",       ".masked_bias",  ".attn.bias"};

void remove_part(std::string& text, std::string_view part) {
  if (const std::size_t at = text.find(part); at != text.npos) text.erase(at, part.size());
}

/// The name as the tables have it: "model.language_model.layers.0.x" is "layers.0.x".
/// Whether `name` is `pattern` with numbers for "{}", and what then is left of it.
bool fits(std::string_view pattern, std::string_view name, std::int64_t (&numbers)[2], std::string_view& rest) {
  std::size_t n = 0;
  while (!pattern.empty()) {
    if (pattern.starts_with("{}")) {
      if (n == std::size(numbers)) return false;
      const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), numbers[n]);
      if (failed != std::errc() || numbers[n] < 0 || numbers[n] > 65535) return false;
      name.remove_prefix(static_cast<std::size_t>(end - name.data()));
      pattern.remove_prefix(2);
      ++n;
    } else {
      const std::size_t length = std::min(pattern.find('{'), pattern.size());
      if (!name.starts_with(pattern.substr(0, length))) return false;
      name.remove_prefix(length);
      pattern.remove_prefix(length);
    }
  }
  rest = name;
  return rest.empty() || rest == ".weight" || rest == ".bias";
}

std::string with_layer(std::string_view pattern, std::int64_t layer, std::string_view rest) {
  std::string name(pattern);
  if (name.empty()) return name;
  if (const std::size_t at = name.find("{}"); at != name.npos) name.replace(at, 2, std::to_string(layer));
  return name.append(rest);
}

/// Numbers of a delta net, which the families read outside of their tables.
constexpr std::pair<std::string_view, std::string_view> delta_net_keys[] = {
    {"linear_num_key_heads", "ssm.group_count"},
    {"linear_num_value_heads", "ssm.time_step_rank"},
    {"linear_key_head_dim", "ssm.state_size"},
};

/// The numbers of config.json that metadata come from.
json configuration_of(const family& f, const io::metadata& model) {
  json numbers = json::object();
  const std::string prefix = std::string(f.architecture) + ".";
  const auto set = [&](std::string_view key, std::string_view from) {
    if (const auto n = model.integer(prefix + std::string(from))) numbers[std::string(key)] = *n;
  };
  for (const key_row& row : f.keys)
    if (row.type == key_type::count) set(row.from.substr(0, row.from.find('|')), row.to);
  for (const auto& [key, from] : delta_net_keys) set(key, from);
  const auto inner = model.integer(prefix + "ssm.inner_size"), heads = model.integer(prefix + "ssm.time_step_rank");
  if (inner && heads && *heads > 0) numbers["linear_value_head_dim"] = *inner / *heads;
  return numbers;
}

}  // namespace

bool is_foreign(std::string_view name) noexcept {
  for (const std::string_view part : foreign)
    if (name.find(part) != name.npos) return true;
  return false;
}

std::string plain_name(std::string_view full) {
  std::string name(full);
  remove_part(name, "language_model.");
  remove_part(name, "text_model.");
  for (const std::string_view start : {"model.", "bert.", "roberta."})
    if (name.starts_with(start)) name.erase(0, start.size());
  for (const auto& [old, now] : {std::pair{".gamma", ".weight"}, {".beta", ".bias"}})  // TensorFlow's names
    if (name.ends_with(old)) name.replace(name.size() - std::string_view(old).size(), std::string::npos, now);
  return name;
}

name_match find_row(const family& f, std::string_view name) {
  for (const std::span<const tensor_row> table : f.tensors)
    for (const tensor_row& row : table) {
      std::int64_t numbers[2] = {-1, -1};
      std::string_view rest;
      if (!fits(row.from, name, numbers, rest)) continue;
      const std::size_t bar = row.to.find('|');
      name_match m{&row, {.layer = numbers[0], .expert = numbers[1]}};
      m.names.first = with_layer(row.to.substr(0, bar), numbers[0], rest);
      if (bar != row.to.npos) m.names.second = with_layer(row.to.substr(bar + 1), numbers[0], rest);
      return m;
    }
  return {};
}

stored_name find_stored_name(const family& f, std::string_view gguf) {
  for (const std::span<const tensor_row> table : f.tensors)
    for (const tensor_row& row : table) {
      if (row.to.empty()) continue;
      const std::size_t bar = row.to.find('|');
      for (const std::string_view to : {row.to.substr(0, bar), bar == row.to.npos ? row.to : row.to.substr(bar + 1)}) {
        std::int64_t numbers[2] = {-1, -1};
        std::string_view rest;
        if (!fits(to, gguf, numbers, rest)) continue;
        stored_name found{&row, with_layer(row.from, numbers[0], rest)};
        const bool bare = row.from == "lm_head" || row.from.starts_with("classifier");
        found.full = (bare ? "" : std::string(f.prefix)) + found.plain;
        return found;
      }
    }
  return {};
}

std::string hugging_face_name(std::string_view architecture, std::string_view gguf) {
  const family* f = family_of(architecture);
  return f == nullptr ? std::string() : find_stored_name(*f, gguf).full;
}

result<layout> layout::of(const io::metadata& model, const std::string& where) {
  const auto architecture = model.string("general.architecture");
  const hugging_face::family* f = architecture ? family_of(*architecture) : nullptr;
  if (f == nullptr)
    return error{errc::unsupported,
                 "it is not known what Hugging Face calls the tensors of architecture " +
                     in_quotes(architecture ? *architecture : std::string_view{}),
                 where};
  hugging_face::config c(configuration_of(*f, model), where);
  c.set_defaults(f->defaults);
  return layout(*f, std::move(c));
}

result<std::vector<placed_tensor>> layout::place(std::string_view plain, const shape& dims) const {
  const name_match m = find_row(*family_, plain);
  if (m.row == nullptr)
    return error{errc::unsupported,
                 "models of architecture " + in_quotes(family_->architecture) + " have no tensor " + in_quotes(plain),
                 config_.where()};
  if (m.row->how == nullptr) return std::vector<placed_tensor>{{m.names.first, dims}};
  if (m.row->how == expert) return std::vector<placed_tensor>{{m.names.first, dims, m.names.expert}};
  // The family's own function says it, of a tensor without data.
  const folder none(config_.where(), {}, {});
  model_builder builder(none, config_, *family_);
  std::vector<placed_tensor> placed;
  builder.record(placed);
  const io::tensor_info tensor{std::string(plain), dtype::f32, dims, 0, 0, 0};
  FLYWHEEL_CHECK(m.row->how(builder, tensor, m.names));
  if (config_.fault()) return *config_.fault();
  if (placed.empty() && m.row->how != ignored)
    return error{errc::unsupported, "unsupported: tensor " + in_quotes(plain) + ", whose values are stored otherwise",
                 config_.where()};
  return placed;
}

result<std::vector<std::int64_t>> inverse_of(const std::function<std::int64_t(std::int64_t)>& f, std::int64_t n) {
  std::vector<std::int64_t> back(static_cast<std::size_t>(n), -1);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t at = f(i);
    if (at < 0 || at >= n || back[static_cast<std::size_t>(at)] >= 0)
      return error{errc::internal, "rows do not only change their order", {}};
    back[static_cast<std::size_t>(at)] = i;
  }
  return back;
}

}  // namespace flywheel::inline v0::hugging_face
