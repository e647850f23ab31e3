#include "src/device/accelerator/blob_cache.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>
#include <tuple>

#include "src/core/checksum.hpp"

namespace flywheel::inline v0::device {
namespace {

namespace fs = std::filesystem;

constexpr char blob_magic[8] = {'f', 'w', 'b', 'l', 'o', 'b', '0', '1'};
constexpr std::uint64_t largest_blob = std::uint64_t{1} << 30;
constexpr std::uint64_t largest_key = std::uint64_t{1} << 20;

/// Of a file. Numbers are the machine's own: a blob is of no use on another kind of machine.
struct blob_header {
  char magic[8];
  std::uint64_t key_bytes;
  std::uint64_t blob_bytes;
  std::uint64_t sum;  ///< Of key and blob.
};

std::uint64_t sum_of(std::string_view key, std::span<const std::byte> blob) {
  detail::checksum sum;
  sum.add(std::as_bytes(std::span(key.data(), key.size())));
  sum.add(blob);
  return sum.value();
}

std::string hexadecimal(std::uint64_t n) {
  std::string text(16, '0');
  for (std::size_t i = 0; i < 16; ++i) text[15 - i] = "0123456789abcdef"[n >> (4 * i) & 15];
  return text;
}

}  // namespace

fs::path blob_cache::file_of(std::string_view key) const { return folder_ / (hexadecimal(sum_of(key, {})) + ".blob"); }

std::vector<std::byte> blob_cache::find(std::string_view key) const {
  if (folder_.empty()) return {};
  const fs::path name = file_of(key);
  std::error_code failed;
  if (!fs::is_regular_file(name, failed)) return {};  // opening a pipe would wait for ever
  const std::uint64_t size = fs::file_size(name, failed);
  std::ifstream file(name, std::ios::binary);
  blob_header head{};
  if (failed || !file.read(reinterpret_cast<char*>(&head), sizeof head)) return {};
  // Both sizes are limited before they are added.
  if (std::memcmp(head.magic, blob_magic, sizeof blob_magic) != 0 || head.key_bytes != key.size() ||
      head.key_bytes > largest_key || head.blob_bytes > largest_blob || head.blob_bytes == 0 ||
      size != sizeof head + head.key_bytes + head.blob_bytes)
    return {};
  std::string own(key.size(), '\0');
  std::vector<std::byte> blob(static_cast<std::size_t>(head.blob_bytes));
  if (!file.read(own.data(), static_cast<std::streamsize>(own.size())) ||
      !file.read(reinterpret_cast<char*>(blob.data()), static_cast<std::streamsize>(blob.size())) || own != key ||
      sum_of(key, blob) != head.sum)
    return {};
  fs::last_write_time(name, fs::file_time_type::clock::now(), failed);
  return blob;
}

void blob_cache::put(std::string_view key, std::span<const std::byte> blob) const {
  if (folder_.empty() || blob.empty() || blob.size() > std::min(max_, largest_blob) || key.size() > largest_key) return;
  std::error_code failed;
  fs::create_directories(folder_, failed);
  // Of this moment and thread (its stack); a name that two writers share would mix their bytes.
  const std::uint64_t moment = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()) ^
                               reinterpret_cast<std::uintptr_t>(&failed);
  const fs::path final_name = file_of(key);
  fs::path temporary = final_name;
  temporary += "." + hexadecimal(moment) + ".tmp";
  blob_header head{};
  std::memcpy(head.magic, blob_magic, sizeof blob_magic);
  head.key_bytes = key.size();
  head.blob_bytes = blob.size();
  head.sum = sum_of(key, blob);
  {
    std::ofstream file(temporary, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&head), sizeof head);
    file.write(key.data(), static_cast<std::streamsize>(key.size()));
    file.write(reinterpret_cast<const char*>(blob.data()), static_cast<std::streamsize>(blob.size()));
    file.flush();
    if (!file) {
      file.close();
      fs::remove(temporary, failed);
      return;
    }
  }
  fs::rename(temporary, final_name, failed);
  if (failed) fs::remove(temporary, failed);
  trim();
}

void blob_cache::remove(std::string_view key) const {
  if (folder_.empty()) return;
  std::error_code ignored;
  fs::remove(file_of(key), ignored);
}

void blob_cache::trim() const {
  std::error_code failed;
  std::vector<std::tuple<fs::file_time_type, std::uint64_t, fs::path>> files;
  std::uint64_t total = 0;
  const auto now = fs::file_time_type::clock::now();
  for (fs::directory_iterator entry(folder_, failed), end; !failed && entry != end; entry.increment(failed)) {
    const fs::path name = entry->path();
    std::error_code gone;  // another process trims, too
    const std::uint64_t size = fs::file_size(name, gone);
    const fs::file_time_type used = fs::last_write_time(name, gone);
    if (gone) continue;
    // What a writer that was killed left behind goes after an hour.
    if (name.extension() == ".tmp" && now - used > std::chrono::hours(1)) fs::remove(name, gone);
    if (name.extension() != ".blob") continue;
    files.emplace_back(used, size, name);
    total += size;
  }
  std::sort(files.begin(), files.end());
  for (const auto& [used, size, name] : files) {
    if (total <= max_) return;
    std::error_code gone;
    if (fs::remove(name, gone)) total -= size;
  }
}

}  // namespace flywheel::inline v0::device
