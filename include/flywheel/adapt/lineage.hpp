// Where a model comes from: its parents, by name and digest, and what was done to them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flywheel/core/config.hpp"
#include "flywheel/core/progress.hpp"
#include "flywheel/core/result.hpp"
#include "flywheel/io/archive.hpp"
#include "flywheel/io/metadata.hpp"

namespace flywheel::inline v0::adapt {

/// A model or adapter file, and what it was made from.
struct lineage {
  std::string name;     ///< general.name, or the file's.
  std::string path;     ///< Where it was when its child was made, as given.
  std::string role;     ///< "model", "base", "adapter"
  std::string sha256;   ///< 64 hexadecimal digits of the file; of a folder, of the sorted "digest  name" lines of its
                        ///< weights and configuration; empty: not known (of the file that carries the record itself).
  std::string license;  ///< general.license; empty: not known.
  std::string method;   ///< What made it: "ties", "lora merge"; empty: not known to be a descendant.
  std::string parameters;  ///< JSON: the recipe, or the options. Other text is recorded as a JSON string.
  std::uint64_t seed = 0;
  std::string version;  ///< Of the library.
  std::vector<lineage> parents;
};

/// SHA-256 of a file or folder, as lineage has it. Reads through a mapping, a few MiB at a time, so that a thread that
/// does this beside another reader of the file shares its pages. Progress in bytes. Errors: not_found, io, cancelled.
[[nodiscard]] FLYWHEEL_API result<std::string> file_digest(const std::filesystem::path& path,
                                                           const control& control = {});

/// A parent that is about to be used: its facts and its own lineage, with the digest of its file. It is read_lineage
/// and file_digest, for callers that need no digest before they start. Errors: those of both.
[[nodiscard]] FLYWHEEL_API result<lineage> describe_parent(const std::filesystem::path& path, std::string role,
                                                           const control& control = {});

/// Says it in a model's metadata: general.base_model.count, .N.name, .N.version ("sha256:...") and, as JSON with
/// everything, flywheel.lineage. Of very large trees the nearest ancestors are recorded (24 generations, 4096 in all).
/// Replaces what the metadata said before. Licences of all parents that have one and agree become general.license; else
/// it is erased, and general.base_model.N.license says each.
FLYWHEEL_API void add_lineage(io::metadata& meta, const lineage& of);
/// An archive that says it; the tensors are shared.
[[nodiscard]] FLYWHEEL_API result<io::archive> with_lineage(const io::archive& file, const lineage& of);
/// Beside a file: `out`.lineage.json. Errors: io.
[[nodiscard]] FLYWHEEL_API result<void> write_lineage(const lineage& of, const std::filesystem::path& out);
/// Of a file or folder: from its metadata, else from the file beside it; without either, a model without parents. The
/// record is not trusted: it is bounded in size and depth. Errors: those of reading, malformed.
[[nodiscard]] FLYWHEEL_API result<lineage> read_lineage(const std::filesystem::path& path);

enum class digest_state : std::uint8_t { right, wrong, missing_file, unknown };
/// Whether the parents that are at hand (at their path, or beside the child) are those of the record: one answer for
/// each node of the tree, parents after their child, depth first. Errors: cancelled.
[[nodiscard]] FLYWHEEL_API result<std::vector<digest_state>> verify_lineage(const lineage& of,
                                                                            const std::filesystem::path& at,
                                                                            const control& control = {});

}  // namespace flywheel::inline v0::adapt
