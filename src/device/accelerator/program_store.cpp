#include "src/device/accelerator/program_store.hpp"

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device {

std::string program_store::key_of(const flywheel_part& part, const std::string& fingerprint) const {
  const flywheel_device_caps& c = owner_->caps();
  std::string key = "part 1, interface " + std::to_string(FLYWHEEL_DEVICE_ABI) + '\n' + std::string(c.vendor) + '\n' +
                    c.name + '\n' + c.arch + '\n' + c.driver + '\n' + fingerprint + '\n' +
                    std::to_string(c.scratch_bytes) + ' ' + std::to_string(c.alignment);
  for (std::uint32_t i = 0; i < part.n_ops; ++i) {
    const flywheel_matmul& op = part.ops[i];
    key += '\n';
    for (const std::int64_t n : {std::int64_t{op.kind}, op.rows, op.n, op.k, std::int64_t{op.weights.bits},
                                 std::int64_t{op.weights.group}, std::int64_t{op.input}})
      key += std::to_string(n) + ' ';
  }
  return key;
}

result<std::vector<std::byte>> program_store::compile(const flywheel_part& part) const {
  struct bytes_sink {
    std::vector<std::byte> bytes;
    static flywheel_status write(void* context, const void* data, std::uint64_t size) noexcept {
      try {
        auto& to = static_cast<bytes_sink*>(context)->bytes;
        const auto* from = static_cast<const std::byte*>(data);
        to.insert(to.end(), from, from + size);
        return FLYWHEEL_OK;
      } catch (...) {  // it must not pass through the device
        return FLYWHEEL_OUT_OF_MEMORY;
      }
    }
  } blob;
  const flywheel_sink sink{&blob, &bytes_sink::write};
  const flywheel_status status = owner_->persist("compiling a program", [&] {
    blob.bytes.clear();
    return owner_->table().compile(owner_->self(), &part, &sink);
  });
  if (status != FLYWHEEL_OK) return owner_->failure("compiling a program", status);
  return std::move(blob.bytes);
}

result<std::shared_ptr<const vendor_executable>> program_store::get(std::span<const flywheel_matmul> ops,
                                                                    std::int64_t rows) {
  std::vector<flywheel_matmul> own(ops.begin(), ops.end());
  for (flywheel_matmul& op : own) op.rows = rows;
  flywheel_part part{};
  part.size = sizeof part;
  part.n_ops = static_cast<std::uint32_t>(own.size());
  part.ops = own.data();
  part.n_inputs = 1;
  FLYWHEEL_TRY(const std::string fingerprint, owner_->fingerprint());
  const std::string key = key_of(part, fingerprint);
  const std::scoped_lock lock(mutex_);
  if (const auto at = loaded_.find(key); at != loaded_.end())
    if (auto there = at->second.lock()) return there;

  auto made = std::make_shared<vendor_executable>(owner_);  // before the handle that it is to own
  std::vector<std::byte> blob = cache_.find(key);
  for (bool fresh = false;; fresh = true) {
    if (blob.empty()) {
      FLYWHEEL_TRY(blob, compile(part));
      cache_.put(key, blob);
      fresh = true;
    }
    // A blob of the cache may be of an older driver: it is compiled again rather than loaded again.
    bool stale = false;
    const flywheel_status status = owner_->persist("loading a program", [&] {
      const flywheel_status loaded = owner_->table().load(owner_->self(), blob.data(), blob.size(), made->place());
      if (loaded != FLYWHEEL_OK) *made->place() = nullptr;
      stale = !fresh && (loaded == FLYWHEEL_INCOMPATIBLE || loaded == FLYWHEEL_CORRUPT);
      if (stale) owner_->warn("loading a program", loaded);
      return stale ? FLYWHEEL_OK : loaded;
    });
    if (status != FLYWHEEL_OK) return owner_->failure("loading a program", status);
    if (!stale) break;
    cache_.remove(key);
    blob.clear();
  }
  loaded_[key] = made;
  return std::shared_ptr<const vendor_executable>(std::move(made));
}

}  // namespace flywheel::inline v0::device
