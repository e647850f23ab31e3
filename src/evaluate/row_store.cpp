#include "src/evaluate/row_store.hpp"

#include <cerrno>
#include <system_error>

namespace flywheel::inline v0::evaluate {
namespace {

error refused(const char* doing) {
  return {errc::io,
          std::string("a temporary file cannot be ") + doing + ": " + std::generic_category().message(errno) +
              "; allow the baseline more memory, or compare fewer windows",
          "baseline"};
}

}  // namespace

result<void> row_store::append(std::span<const std::uint16_t> codes) {
  piece p;
  p.size = codes.size();
  if (codes.size_bytes() <= left_) {
    p.codes.assign(codes.begin(), codes.end());
    left_ -= codes.size_bytes();
  } else {
    if (!file_) file_.reset(std::tmpfile());
    if (!file_) return refused("created");
    if (std::fgetpos(file_.get(), &p.position) != 0 ||
        std::fwrite(codes.data(), sizeof codes[0], codes.size(), file_.get()) != codes.size() ||
        std::fflush(file_.get()) != 0)
      return refused("written");
  }
  pieces_.push_back(std::move(p));
  return {};
}

result<std::span<const std::uint16_t>> row_store::at(std::size_t piece, std::vector<std::uint16_t>& scratch) const {
  const auto& p = pieces_[piece];
  if (!p.codes.empty()) return std::span<const std::uint16_t>(p.codes);
  scratch.resize(p.size);
  const std::scoped_lock lock(mutex_);
  if (std::fsetpos(file_.get(), &p.position) != 0 ||
      std::fread(scratch.data(), sizeof scratch[0], p.size, file_.get()) != p.size)
    return refused("read");
  return std::span<const std::uint16_t>(scratch);
}

}  // namespace flywheel::inline v0::evaluate
