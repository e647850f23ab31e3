#include "flywheel/adapt/lineage.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <span>
#include <system_error>

#include "flywheel/core/mapped_file.hpp"
#include "flywheel/detail/try.hpp"
#include "src/adapt/digest.hpp"
#include "src/io/output_file.hpp"
#include "src/model/device_safetensors.hpp"
#include "src/model/hugging_face/json_file.hpp"

namespace flywheel::inline v0::adapt {
namespace {

using hugging_face::json;
namespace fs = std::filesystem;

constexpr std::string_view record_key = "flywheel.lineage";
constexpr std::size_t max_record_bytes = 16U << 20, max_nodes = 4096, max_generations = 24;
constexpr std::size_t digest_piece = 8U << 20;

class sha256 {
 public:
  sha256() : state_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    right_ = state_ != nullptr && EVP_DigestInit_ex(state_.get(), EVP_sha256(), nullptr) == 1;
  }
  void add(std::span<const std::byte> bytes) {
    right_ = right_ && EVP_DigestUpdate(state_.get(), bytes.data(), bytes.size()) == 1;
  }
  [[nodiscard]] result<std::string> hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (!right_ || EVP_DigestFinal_ex(state_.get(), digest, &size) != 1)
      return error{errc::internal, "SHA-256 cannot be computed", {}};
    std::string text;
    for (unsigned i = 0; i < size; ++i)
      for (const unsigned digit : {digest[i] / 16U, digest[i] % 16U}) text += "0123456789abcdef"[digit];
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> state_;
  bool right_;
};

/// Bytes that were digested, for the caller's progress.
class digest_progress {
 public:
  digest_progress(const control& c, std::uint64_t total) : control_(c), total_(total) {}
  void add(std::uint64_t bytes, const std::string& what) {
    done_ += bytes;
    const auto now = std::chrono::steady_clock::now();
    if (!control_.progress || (now - last_ < std::chrono::milliseconds(50) && done_ != total_)) return;
    last_ = now;
    control_.progress(done_, total_, what);
  }

 private:
  const control& control_;
  std::uint64_t done_ = 0, total_;
  std::chrono::steady_clock::time_point last_{};
};

result<std::string> digest_of(const fs::path& path, const control& control, digest_progress& shown) {
  FLYWHEEL_TRY(const std::shared_ptr<const mapped_file> file, mapped_file::open(path));
  const std::string name = path.filename().string();
  sha256 sum;
  for (std::size_t at = 0; at < file->bytes().size(); at += digest_piece) {
    if (control.stopped()) return error{errc::cancelled, "cancelled", path.string()};
    const std::size_t n = std::min(digest_piece, file->bytes().size() - at);
    sum.add(file->bytes().subspan(at, n));
    file->release(at, n);
    shown.add(n, name);
  }
  return sum.hex();
}

/// Whether a file of a folder is weights or says how they are used.
bool belongs_to_model(const fs::path& file) {
  const std::string name = file.filename().string();
  if (name.ends_with(".lineage.json")) return false;
  return name.ends_with(".safetensors") || name.ends_with(".json") || name.ends_with(".model") ||
         name == "merges.txt" || name == "vocab.txt";
}

/// Of a path that may end with a slash.
std::string last_name(const fs::path& path) {
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

fs::path sidecar_of(const fs::path& of) {
  fs::path beside = of.has_filename() ? of : of.parent_path();
  beside += ".lineage.json";
  return beside;
}

/// The licence that a folder's README.md states in its front matter; empty: none.
std::string folder_license(const fs::path& folder) {
  const auto file = mapped_file::open(folder / "README.md");
  if (!file) return {};
  constexpr std::size_t front_matter = 64U << 10;
  const auto bytes = (*file)->bytes().first(std::min((*file)->bytes().size(), front_matter));
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto next_line = [&] {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    return line;
  };
  if (next_line() != "---") return {};
  constexpr std::string_view key = "license:";
  while (!text.empty()) {
    std::string_view line = next_line();
    if (line == "---") break;
    if (!line.starts_with(key)) continue;
    line.remove_prefix(key.size());
    line.remove_prefix(std::min(line.size(), line.find_first_not_of(" \"'")));
    while (!line.empty() && (line.back() == '"' || line.back() == '\'')) line.remove_suffix(1);
    return std::string(line);
  }
  return {};
}

/// The root, and of its ancestors the nearest, generation by generation.
lineage bounded(const lineage& of) {
  struct pair {
    const lineage* from;
    lineage* to;
  };
  const auto facts = [](const lineage& l) {
    lineage copy;
    copy.name = l.name;
    copy.path = l.path;
    copy.role = l.role;
    copy.sha256 = l.sha256;
    copy.license = l.license;
    copy.method = l.method;
    copy.parameters = l.parameters;
    copy.seed = l.seed;
    copy.version = l.version;
    return copy;
  };
  lineage out = facts(of);
  std::vector<pair> generation = {{&of, &out}};
  std::size_t nodes = 1;
  for (std::size_t depth = 0; depth < max_generations && !generation.empty(); ++depth) {
    std::vector<pair> older;
    for (const pair& child : generation) {
      if (nodes + child.from->parents.size() > max_nodes) continue;
      nodes += child.from->parents.size();
      for (const lineage& parent : child.from->parents) child.to->parents.push_back(facts(parent));
      for (std::size_t i = 0; i < child.to->parents.size(); ++i)
        older.push_back({&child.from->parents[i], &child.to->parents[i]});
    }
    generation = std::move(older);
  }
  return out;
}

json to_json(const lineage& l) {
  json made = json::object();
  const auto add = [&](const char* key, const std::string& text) {
    if (!text.empty()) made[key] = text;
  };
  add("name", l.name);
  add("path", l.path);
  add("role", l.role);
  add("sha256", l.sha256);
  add("license", l.license);
  add("method", l.method);
  if (!l.parameters.empty()) {
    auto parsed = hugging_face::parse_json(l.parameters, {});
    made["parameters"] = parsed ? *std::move(parsed) : json(l.parameters);
  }
  if (l.seed != 0) made["seed"] = l.seed;
  add("version", l.version);
  if (!l.parents.empty()) {
    json& parents = made["parents"] = json::array();
    for (const lineage& parent : l.parents) parents.push_back(to_json(parent));
  }
  return made;
}

std::string record_of(const lineage& l, int indent) {
  return to_json(bounded(l)).dump(indent, ' ', false, json::error_handler_t::replace);
}

/// parse_json bounds the depth, and with it this recursion.
result<lineage> from_json(const json& record, const std::string& where, std::size_t& nodes) {
  const auto wrong = [&](const std::string& what) {
    return error{errc::malformed, "the lineage record is wrong: " + what, where};
  };
  if (!record.is_object()) return wrong("a model is no object");
  if (++nodes > max_nodes) return wrong("it has more than " + std::to_string(max_nodes) + " models");
  lineage l;
  const std::pair<const char*, std::string*> texts[] = {
      {"name", &l.name},       {"path", &l.path},     {"role", &l.role},      {"sha256", &l.sha256},
      {"license", &l.license}, {"method", &l.method}, {"version", &l.version}};
  for (const auto& [key, to] : texts) {
    const auto found = record.find(key);
    if (found == record.end()) continue;
    const auto* text = found->get_ptr<const std::string*>();
    if (text == nullptr) return wrong(std::string("'") + key + "' is no string");
    *to = *text;
  }
  const bool digits = std::all_of(l.sha256.begin(), l.sha256.end(),
                                  [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (!l.sha256.empty() && (l.sha256.size() != 64 || !digits))
    return wrong("'sha256' is not 64 lower-case hexadecimal digits");
  if (const auto found = record.find("parameters"); found != record.end())
    l.parameters = found->dump(-1, ' ', false, json::error_handler_t::replace);
  if (const auto found = record.find("seed"); found != record.end()) {
    if (!found->is_number_unsigned()) return wrong("'seed' is no whole number");
    l.seed = found->get<std::uint64_t>();
  }
  if (const auto found = record.find("parents"); found != record.end()) {
    if (!found->is_array()) return wrong("'parents' is no list");
    for (const json& parent : *found) {
      FLYWHEEL_TRY(lineage one, from_json(parent, where, nodes));
      l.parents.push_back(std::move(one));
    }
  }
  return l;
}

result<lineage> parse_record(std::string_view text, const std::string& where) {
  if (text.size() > max_record_bytes)
    return error{errc::malformed, "the lineage record is longer than " + std::to_string(max_record_bytes) + " bytes",
                 where};
  FLYWHEEL_TRY(const json record, hugging_face::parse_json(text, where));
  std::size_t nodes = 0;
  return from_json(record, where, nodes);
}

class verifier {
 public:
  verifier(const fs::path& at, const control& control) : folder_(at.parent_path()), control_(control) {}

  result<void> visit(const lineage& node) {
    FLYWHEEL_TRY(const digest_state state, check(node));
    states_.push_back(state);
    for (const lineage& parent : node.parents) FLYWHEEL_CHECK(visit(parent));
    return {};
  }
  [[nodiscard]] std::vector<digest_state> take() { return std::move(states_); }

 private:
  result<digest_state> check(const lineage& node) {
    if (node.sha256.empty()) return digest_state::unknown;
    digest_state state = digest_state::missing_file;
    const fs::path path(node.path);
    for (const fs::path& place : {path, folder_ / path, folder_ / last_name(path)}) {
      std::error_code ignored;
      if (node.path.empty() || !fs::exists(place, ignored)) continue;
      const auto [known, is_new] = digests_.try_emplace(fs::weakly_canonical(place, ignored).string());
      if (is_new) {
        auto digest = file_digest(place, control_);
        if (!digest && digest.error().code == errc::cancelled) return std::move(digest).error();
        if (digest) known->second = *std::move(digest);  // what cannot be read is not at hand
      }
      if (known->second == node.sha256) return digest_state::right;
      if (!known->second.empty()) state = digest_state::wrong;
    }
    return state;
  }

  fs::path folder_;
  const control& control_;
  std::map<std::string, std::string> digests_;  ///< By place; empty: cannot be read.
  std::vector<digest_state> states_;
};

}  // namespace

result<std::string> digest(std::span<const std::byte> bytes) {
  sha256 sum;
  sum.add(bytes);
  return sum.hex();
}

result<std::string> file_digest(const fs::path& path, const control& control) {
  return detail::guarded([&]() -> result<std::string> {
    std::error_code failed;
    if (!fs::is_directory(path, failed)) {
      const std::uintmax_t size = fs::file_size(path, failed);
      digest_progress shown(control, failed ? 0 : size);
      return digest_of(path, control, shown);
    }
    std::vector<fs::path> files;
    std::uint64_t total = 0;
    for (fs::directory_iterator entry(path, failed), end; !failed && entry != end; entry.increment(failed)) {
      std::error_code ignored;
      if (!entry->is_regular_file(ignored) || !belongs_to_model(entry->path())) continue;
      files.push_back(entry->path());
      total += entry->file_size(ignored);
    }
    if (failed) return error{errc::io, "cannot list the folder: " + failed.message(), path.string()};
    if (files.empty()) return error{errc::not_found, "the folder holds no weights", path.string()};
    digest_progress shown(control, total);
    std::vector<std::string> lines;
    for (const fs::path& file : files) {
      FLYWHEEL_TRY(const std::string digest, digest_of(file, control, shown));
      lines.push_back(digest + "  " + file.filename().string() + "\n");
    }
    std::sort(lines.begin(), lines.end());
    sha256 sum;
    for (const std::string& line : lines) sum.add(std::as_bytes(std::span(line)));
    return sum.hex();
  });
}

result<lineage> describe_parent(const fs::path& path, std::string role, const control& control) {
  return detail::guarded([&]() -> result<lineage> {
    FLYWHEEL_TRY(lineage parent, read_lineage(path));
    parent.role = std::move(role);
    FLYWHEEL_TRY(parent.sha256, file_digest(path, control));
    return parent;
  });
}

void add_lineage(io::metadata& meta, const lineage& of) {
  std::vector<std::string> old;
  for (const io::entry& e : meta.entries())
    if (e.key.starts_with("general.base_model.")) old.push_back(e.key);
  for (const std::string& key : old) meta.erase(key);

  meta.set("general.base_model.count", static_cast<std::uint32_t>(of.parents.size()));
  std::string license;
  bool agree = true;
  for (const lineage& parent : of.parents) {
    agree = agree && (parent.license.empty() || license.empty() || parent.license == license);
    if (license.empty()) license = parent.license;
  }
  for (std::size_t i = 0; i < of.parents.size(); ++i) {
    const lineage& parent = of.parents[i];
    const std::string prefix = "general.base_model." + std::to_string(i) + ".";
    meta.set(prefix + "name", parent.name);
    if (!parent.sha256.empty()) meta.set(prefix + "version", "sha256:" + parent.sha256);
    if (!agree && !parent.license.empty()) meta.set(prefix + "license", parent.license);
  }
  if (agree && !license.empty())
    meta.set("general.license", license);
  else
    meta.erase("general.license");
  meta.set(std::string(record_key), record_of(of, -1));
}

result<io::archive> with_lineage(const io::archive& file, const lineage& of) {
  return detail::guarded([&]() -> result<io::archive> {
    io::archive_content same;
    same.metadata = file.metadata();
    add_lineage(same.metadata, of);
    same.tensors.assign(file.tensors().begin(), file.tensors().end());
    same.sources.assign(file.sources().begin(), file.sources().end());
    same.path = file.path();
    same.file_bytes = file.file_bytes();
    same.files = file.parts();
    return io::archive::assemble(std::move(same));
  });
}

result<void> write_lineage(const lineage& of, const fs::path& out) {
  return detail::guarded([&]() -> result<void> {
    const std::string text = record_of(of, 2) + "\n";
    FLYWHEEL_TRY(auto file, io::detail::output_file::create(sidecar_of(out)));
    FLYWHEEL_CHECK(file.write(std::as_bytes(std::span(text))));
    return file.commit();
  });
}

result<lineage> read_lineage(const fs::path& path) {
  return detail::guarded([&]() -> result<lineage> {
    std::error_code ignored;
    lineage plain;
    plain.path = path.string();
    plain.name = last_name(path);
    plain.role = "model";
    const auto complete = [&](lineage read) {
      if (read.name.empty()) read.name = plain.name;
      read.path = plain.path;
      if (read.role.empty()) read.role = plain.role;
      if (read.license.empty()) read.license = plain.license;
      return read;
    };
    if (fs::is_directory(path, ignored)) {
      if (fs::exists(path / "adapter_config.json", ignored)) plain.role = "adapter";
      plain.license = folder_license(path);
    } else {
      plain.name = path.stem().string();
      FLYWHEEL_TRY(io::archive file, io::archive::open(path));
      if (flywheel::detail::holds_model(file)) {
        FLYWHEEL_TRY(file, flywheel::detail::open_safetensors_model(file));
      }
      const io::metadata& meta = file.metadata();
      if (const auto name = meta.string("general.name"); name && !name->empty()) plain.name = *name;
      if (const auto type = meta.string("general.type"); type && *type == "adapter") plain.role = "adapter";
      if (const auto license = meta.string("general.license")) plain.license = *license;
      if (meta.contains(record_key)) {
        const auto text = meta.string(record_key);
        if (!text)
          return error{errc::malformed, "the lineage record is no string", path.string() + ": flywheel.lineage"};
        FLYWHEEL_TRY(lineage read, parse_record(*text, path.string() + ": flywheel.lineage"));
        return complete(std::move(read));
      }
    }
    const fs::path beside = sidecar_of(path);
    if (!fs::exists(beside, ignored)) return plain;
    FLYWHEEL_TRY(const std::shared_ptr<const mapped_file> text, mapped_file::open(beside));
    FLYWHEEL_TRY(lineage read, parse_record({reinterpret_cast<const char*>(text->bytes().data()), text->bytes().size()},
                                            beside.string()));
    return complete(std::move(read));
  });
}

result<std::vector<digest_state>> verify_lineage(const lineage& of, const fs::path& at, const control& control) {
  return detail::guarded([&]() -> result<std::vector<digest_state>> {
    verifier v(at.has_filename() ? at : at.parent_path(), control);
    FLYWHEEL_CHECK(v.visit(of));
    return v.take();
  });
}

}  // namespace flywheel::inline v0::adapt
