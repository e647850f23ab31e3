// A model as a Hugging Face folder: tensors under their names there, the rest as in a folder like it.
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "flywheel/model/convert.hpp"
#include "src/io/reading.hpp"
#include "src/model/hugging_face/folder.hpp"
#include "src/model/hugging_face/stored_tensors.hpp"
#include "src/model/hugging_face/translate.hpp"

namespace flywheel::inline v0 {
namespace hugging_face {
namespace {

bool stored_in_folders(dtype type) noexcept { return type == dtype::f32 || type == dtype::f16 || type == dtype::bf16; }

/// What a folder has that its tokenizer and its users need, and that does not say how many layers there are.
bool is_copied(const std::filesystem::path& file) {
  const std::string name = file.filename().string();
  if (name.starts_with('.') || name == "config.json" || name.ends_with(".index.json") ||
      name.ends_with(".lineage.json") || name.starts_with("adapter_"))
    return false;
  for (const std::string_view ending : {".json", ".model", ".txt", ".jinja"})
    if (name.ends_with(ending)) return true;
  return false;
}

class model_folder {
 public:
  model_folder(const io::archive& from, const folder& like, const io::archive& like_model,
               const folder_options& options)
      : from_(from), like_(like), like_model_(like_model), options_(options) {}

  result<converted_model> write(const std::filesystem::path& out) {
    FLYWHEEL_TRY(json checked, like_.read_json("config.json"));
    config c(std::move(checked), like_.where("config.json"));
    const family* const f = find_family(c.architecture());
    if (f == nullptr) return error{errc::internal, "the folder's family is not known", like_.path().string()};
    c.set_defaults(f->defaults);
    FLYWHEEL_CHECK(check_alike());
    const layout names(*f, std::move(c));
    stored_tensors tensors(from_, names);
    for (const io::tensor_info& t : from_.tensors())
      if (!t.name.starts_with("rope_f"))  // what the configuration says
        FLYWHEEL_CHECK(tensors.add_weight("", t));
    FLYWHEEL_TRY(const io::archive stored, tensors.finish());
    find_names(stored);
    FLYWHEEL_CHECK(choose_types(stored));

    FLYWHEEL_TRY(new_folder folder, new_folder::create(out));
    FLYWHEEL_CHECK(copy_files(folder.path()));
    FLYWHEEL_TRY(const std::string configuration, configured());
    FLYWHEEL_CHECK(folder.write("config.json", configuration));
    FLYWHEEL_CHECK(write_weights(stored, folder));
    FLYWHEEL_CHECK(folder.finish());
    return done_;
  }

 private:
  /// The folder's files must be true for this model, too.
  result<void> check_alike() const {
    const auto text = [](const io::archive& of, const char* key) {
      const auto found = of.metadata().string(key);
      return found ? std::string(*found) : std::string();
    };
    const auto differ = [&](const std::string& what) {
      return error{errc::invalid_argument,
                   "the folder " + like_.path().string() + " is no model like it: " + what + " differs",
                   from_.path().string()};
    };
    const std::string architecture = text(from_, "general.architecture");
    if (architecture != text(like_model_, "general.architecture")) return differ("the architecture");
    for (const io::entry& e : like_model_.metadata().entries()) {
      const io::value* const own = from_.metadata().find(e.key);
      if (own == nullptr || !e.key.starts_with(architecture + ".") || e.key.ends_with(".block_count") ||
          e.key.ends_with(".vocab_size"))
        continue;
      const auto number = from_.metadata().number(e.key), other = like_model_.metadata().number(e.key);
      if (number && other && *number != *other) return differ("'" + e.key + "'");
    }
    const auto *ours = from_.metadata().find("tokenizer.ggml.tokens"),
               *theirs = like_model_.metadata().find("tokenizer.ggml.tokens");
    if (ours != nullptr && (theirs == nullptr || *ours != *theirs))
      return error{errc::unsupported,
                   "its vocabulary is not that of the folder " + like_.path().string() +
                       ", whose tokenizer files would be copied; write GGUF instead",
                   from_.path().string()};
    return {};
  }

  /// What the folder has in front of names: "model.", "language_model.model.", "bert.". Of layers that it does not
  /// have, what its first has.
  void find_names(const io::archive& stored) {
    std::map<std::string, std::string> known;  // by plain name
    for (const io::tensor_info& t : like_.weights().tensors()) known.emplace(plain_name(t.name), t.name);
    for (const io::tensor_info& t : stored.tensors()) {
      const std::string plain = plain_name(t.name);
      if (const auto same = known.find(plain); same != known.end()) {
        names_.push_back(same->second);
        continue;
      }
      std::string first = plain;
      const std::size_t digits = plain.find_first_of("0123456789"), end = plain.find_first_not_of("0123456789", digits);
      if (digits != plain.npos && end != plain.npos) first.replace(digits, end - digits, "0");
      const auto alike = known.find(first);
      const std::size_t front = alike == known.end() ? 0 : alike->second.size() - first.size();
      names_.push_back(alike == known.end() ? t.name : alike->second.substr(0, front) + plain);
    }
  }

  /// The folder's own types, else those of this model's matrices.
  result<void> choose_types(const io::archive& stored) {
    for (const io::tensor_info& t : stored.tensors()) {
      const io::tensor_info* const same = like_.weights().find(names_[types_.size()]);
      dtype type = stored_in_folders(t.type) ? t.type : dtype::f16;
      if (options_.type)
        type = *options_.type;
      else if (same != nullptr && stored_in_folders(same->type))
        type = same->type;
      else if (t.dims.rank() < 2 && !types_.empty())
        type = types_.front();
      if (!stored_in_folders(type))
        return error{errc::invalid_argument, "folders take f32, f16 and bf16, not " + std::string(to_string(type)),
                     "type"};
      types_.push_back(type);
      done_.changed += type != t.type ? 1 : 0;
    }
    done_.tensors = types_.size();
    return {};
  }

  result<void> copy_files(const std::filesystem::path& to) const {
    std::error_code failed;
    for (std::filesystem::directory_iterator it(like_.path(), failed), end; !failed && it != end;
         it.increment(failed)) {
      std::error_code ignored;
      if (!it->is_regular_file(ignored) || !is_copied(it->path())) continue;
      std::filesystem::copy_file(it->path(), to / it->path().filename(), failed);
      if (failed) break;
    }
    if (failed) return error{errc::io, "cannot copy the folder's files: " + failed.message(), like_.path().string()};
    return {};
  }

  /// The numbers of the configuration that this model has otherwise.
  result<std::string> configured() const {
    // Read again, in the order of its keys: that it is sound is known by now.
    FLYWHEEL_TRY(const std::optional<std::string> stored, like_.read("config.json"));
    auto document = nlohmann::ordered_json::parse(*stored);
    auto& text = document.contains("text_config") ? document["text_config"] : document;
    const auto architecture = from_.metadata().string("general.architecture");
    const auto layers = from_.metadata().integer(std::string(*architecture) + ".block_count");
    if (layers) {
      for (const char* key : {"num_hidden_layers", "n_layer"}) {
        if (!text.contains(key) || text[key] == *layers) continue;
        if (text.contains("layer_types"))
          return error{errc::unsupported,
                       "it has " + std::to_string(*layers) +
                           " layers, and the folder's configuration lists the kinds of another number",
                       like_.where("config.json")};
        text[key] = *layers;
      }
    }
    if (const io::tensor_info* t = from_.find("token_embd.weight"); t != nullptr && text.contains("vocab_size"))
      text["vocab_size"] = t->dims[0];
    const bool tied = from_.find("output.weight") == nullptr;
    if (tied != (like_model_.find("output.weight") == nullptr)) {
      text["tie_word_embeddings"] = tied;
      if (document.contains("tie_word_embeddings")) document["tie_word_embeddings"] = tied;
    }
    if (options_.type) {
      const char* const name = *options_.type == dtype::f32    ? "float32"
                               : *options_.type == dtype::bf16 ? "bfloat16"
                                                               : "float16";
      document[document.contains("dtype") ? "dtype" : "torch_dtype"] = name;
    }
    return document.dump(2) + "\n";
  }

  result<void> write_weights(const io::archive& stored, const new_folder& folder) {
    std::vector<std::size_t> begins = {0};
    std::uint64_t in_shard = 0;
    std::vector<std::uint64_t> sizes;
    for (std::size_t i = 0; i < types_.size(); ++i) {
      const shape& dims = stored.tensors()[i].dims;
      sizes.push_back(static_cast<std::uint64_t>(dims.elements()) * info(types_[i])->block_bytes);
      if (in_shard > 0 && in_shard + sizes[i] > options_.max_shard_bytes) {
        begins.push_back(i);
        in_shard = 0;
      }
      in_shard += sizes[i];
      done_.bytes += sizes[i];
    }
    begins.push_back(types_.size());
    FLYWHEEL_TRY(const context ctx, options_.context.or_default());
    const std::size_t shards = begins.size() - 1;
    json index = {{"metadata", {{"total_size", done_.bytes}}}, {"weight_map", json::object()}};
    std::uint64_t before = 0;
    for (std::size_t s = 0; s < shards; ++s) {
      const auto number = [](std::size_t n) {
        const std::string digits = std::to_string(n);
        return std::string(5 - std::min<std::size_t>(5, digits.size()), '0') + digits;
      };
      const std::string name =
          shards == 1 ? "model.safetensors" : "model-" + number(s + 1) + "-of-" + number(shards) + ".safetensors";
      io::archive_content content;
      content.tensors.assign(stored.tensors().begin() + static_cast<std::ptrdiff_t>(begins[s]),
                             stored.tensors().begin() + static_cast<std::ptrdiff_t>(begins[s + 1]));
      content.sources.assign(stored.sources().begin(), stored.sources().end());
      content.path = stored.path();
      for (std::size_t i = begins[s]; i < begins[s + 1]; ++i) {
        content.tensors[i - begins[s]].name = names_[i];
        index["weight_map"][names_[i]] = name;
      }
      FLYWHEEL_TRY(const io::archive shard, io::archive::assemble(std::move(content)));
      control shown = options_.control;
      if (shown.progress)
        shown.progress = [&](std::uint64_t done, std::uint64_t, std::string_view what) {
          options_.control.progress(before + done, done_.bytes, what);
        };
      FLYWHEEL_CHECK(write_safetensors(shard, folder.path() / name,
                                       std::span(types_).subspan(begins[s], begins[s + 1] - begins[s]), ctx, shown));
      for (std::size_t i = begins[s]; i < begins[s + 1]; ++i) before += sizes[i];
    }
    if (shards > 1) FLYWHEEL_CHECK(folder.write("model.safetensors.index.json", index.dump(2) + "\n"));
    return {};
  }

  const io::archive& from_;
  const folder& like_;
  const io::archive& like_model_;
  const folder_options& options_;
  std::vector<std::string> names_;  ///< [stored tensors]
  std::vector<dtype> types_;
  converted_model done_;
};

}  // namespace
}  // namespace hugging_face

result<converted_model> convert_to_folder(const io::archive& from, const std::filesystem::path& like,
                                          const std::filesystem::path& out, const folder_options& options) {
  return detail::guarded([&]() -> result<converted_model> {
    if (options.max_shard_bytes == 0)
      return error{errc::invalid_argument, "a file must be allowed to hold something", "max_shard_bytes"};
    FLYWHEEL_TRY(const hugging_face::folder folder, hugging_face::folder::open(like));
    FLYWHEEL_TRY(const io::archive like_model, hugging_face::translate(folder));
    return hugging_face::model_folder(from, folder, like_model, options).write(out);
  });
}

}  // namespace flywheel::inline v0
