#include "src/device/accelerator/vendor_device.hpp"

#include <cstring>
#include <utility>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device {
namespace {

constexpr std::uint32_t largest_alignment = 4096;
constexpr std::uint64_t largest_bytes = std::uint64_t{1} << 48;  ///< Of a buffer: sizes may be added.

/// Text that a device wrote, whether it ended it or not.
template <std::size_t N>
void end_text(char (&text)[N]) {
  text[N - 1] = '\0';
}

bool is_name(std::string_view name) {
  if (name.empty()) return false;
  for (const char c : name)
    if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
      return false;
  return true;
}

}  // namespace

result<std::shared_ptr<vendor_device>> vendor_device::adopt(const flywheel_device_table& table,
                                                            accelerator_options options) {
  std::unique_ptr<vendor_device> own;
  try {
    own.reset(new vendor_device(table, std::move(options)));
  } catch (...) {  // nobody else closes it
    if (table.close) table.close(table.self);
    throw;
  }
  std::shared_ptr<vendor_device> made(std::move(own));
  made->options_.retries = std::clamp(made->options_.retries, 0, 1000);
  FLYWHEEL_CHECK(made->check());
  return made;
}

vendor_device::~vendor_device() {
  if (table_.close) table_.close(table_.self);
}

result<void> vendor_device::check() {
  const auto wrong = [](std::string what) { return error{errc::unsupported, std::move(what), "device"}; };
  const flywheel_device_table& t = table_;
  if (t.size < offsetof(flywheel_device_table, last_error))
    return wrong("the device's table has " + std::to_string(t.size) + " bytes: it was made for another flywheel");
  if (t.size < sizeof t) table_.last_error = nullptr;
  if (!t.close || !t.caps || !t.fingerprint || !t.query || !t.packed_size || !t.pack || !t.unpack || !t.compile ||
      !t.load || !t.unload || !t.alloc || !t.map || !t.unmap || !t.release || !t.submit || !t.wait)
    return wrong("the device's table lacks functions that are not optional");
  caps_.size = sizeof caps_;
  if (const flywheel_status status = t.caps(t.self, &caps_); status != FLYWHEEL_OK)
    return failure("asking for its capabilities", status);
  end_text(caps_.name);
  end_text(caps_.vendor);
  end_text(caps_.arch);
  end_text(caps_.driver);
  if (caps_.abi != FLYWHEEL_DEVICE_ABI)
    return wrong("the device has interface version " + std::to_string(caps_.abi) + ", this is version " +
                 std::to_string(FLYWHEEL_DEVICE_ABI));
  if (!is_name(caps_.name)) return wrong("the device's name is not made of letters, digits, '-' and '_'");
  if (caps_.alignment == 0 || caps_.alignment > largest_alignment || (caps_.alignment & (caps_.alignment - 1)) != 0)
    return wrong("the device's alignment, " + std::to_string(caps_.alignment) + ", is no power of two up to 4096");
  if (caps_.n_weight_formats > FLYWHEEL_MAX_WEIGHT_FORMATS)
    return wrong("the device names " + std::to_string(caps_.n_weight_formats) + " weight formats, more than fit");
  for (const double n : {caps_.multiply_adds_per_second, caps_.bytes_per_second, caps_.launch_seconds})
    if (!(n >= 0 && n <= 1e18)) return wrong("the device's rates or times are no numbers that make sense");
  if (caps_.max_in_flight == 0) return wrong("the device takes no submissions (max_in_flight is 0)");
  return {};
}

result<std::string> vendor_device::fingerprint() const {
  char text[256] = {};
  if (const flywheel_status status = table_.fingerprint(table_.self, text, sizeof text); status != FLYWHEEL_OK)
    return failure("asking for its fingerprint", status);
  end_text(text);
  return std::string(text);
}

std::string vendor_device::words() const {
  if (!table_.last_error) return {};
  char text[256] = {};
  table_.last_error(table_.self, text, sizeof text);
  end_text(text);
  return text[0] ? " (" + std::string(text) + ")" : std::string();
}

error vendor_device::failure(std::string_view what, flywheel_status status) const {
  return {errc::device, std::string(what) + ": " + std::string(to_string_of_status(status)) + words(), caps_.name};
}

void vendor_device::warn(std::string_view what, flywheel_status status) const {
  // The end of the device is the error of a run; who goes on then says so.
  if (!options_.log || status == FLYWHEEL_DEVICE_LOST) return;
  try {
    options_.log(log_level::warning, failure(what, status).to_string());
  } catch (...) {  // a sink that throws, or no memory for the message: work goes on
  }
}

error vendor_device::lose(std::string_view why) const {
  {
    const std::scoped_lock lock(mutex_);
    lost_.store(true, std::memory_order_relaxed);
  }
  freed_.notify_all();
  return {errc::device, std::string(why), caps_.name};
}

bool vendor_device::try_take_place() const {
  const std::scoped_lock lock(mutex_);
  if (in_flight_ >= caps_.max_in_flight) return false;
  ++in_flight_;
  return true;
}

bool vendor_device::take_place(std::chrono::milliseconds patience) const {
  std::unique_lock lock(mutex_);
  if (!freed_.wait_for(lock, patience, [&] { return lost() || in_flight_ < caps_.max_in_flight; }) || lost())
    return false;
  ++in_flight_;
  return true;
}

void vendor_device::give_place() const {
  {
    const std::scoped_lock lock(mutex_);
    --in_flight_;
  }
  freed_.notify_one();
}

vendor_buffer& vendor_buffer::operator=(vendor_buffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  owner_ = std::move(other.owner_);
  handle_ = std::exchange(other.handle_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  host_ = std::move(other.host_);
  return *this;
}

void vendor_buffer::release() noexcept {
  if (handle_) owner_->table().release(owner_->self(), handle_);
  handle_ = nullptr;
}

result<vendor_buffer> vendor_buffer::make(std::shared_ptr<const vendor_device> owner, std::uint64_t bytes) {
  vendor_buffer made;
  const flywheel_device_caps& caps = owner->caps();
  const flywheel_device_table& table = owner->table();
  if (bytes > largest_bytes || (caps.max_buffer_bytes != 0 && bytes > caps.max_buffer_bytes))
    return error{errc::device,
                 "a buffer of " + std::to_string(bytes) + " bytes is larger than its limit of " +
                     std::to_string(caps.max_buffer_bytes == 0 ? largest_bytes : caps.max_buffer_bytes),
                 owner->name()};
  made.bytes_ = bytes;
  flywheel_status status = FLYWHEEL_UNSUPPORTED;
  if (caps.unified_memory && table.import_host) {
    // Whole pages, aligned to one: whatever alignment the device wants, it has it.
    FLYWHEEL_TRY(made.host_, buffer::zeros((static_cast<std::size_t>(bytes) + largest_alignment) / largest_alignment *
                                               largest_alignment +
                                           largest_alignment));
    auto address = reinterpret_cast<std::uintptr_t>(made.host_.mutable_data());
    address = (address + largest_alignment - 1) / largest_alignment * largest_alignment;
    status = owner->persist("importing memory", [&] {
      return table.import_host(owner->self(), reinterpret_cast<void*>(address), bytes, &made.handle_);
    });
  }
  if (status == FLYWHEEL_UNSUPPORTED) {
    made.host_ = {};
    status = owner->persist("allocating memory", [&] { return table.alloc(owner->self(), bytes, &made.handle_); });
  }
  if (status != FLYWHEEL_OK) {
    made.handle_ = nullptr;
    return owner->failure("allocating " + std::to_string(bytes) + " bytes", status);
  }
  made.owner_ = std::move(owner);
  return made;
}

flywheel_status vendor_buffer::map(std::uint32_t access, void*& out) const {
  return owner_->table().map(owner_->self(), handle_, access, &out);
}
flywheel_status vendor_buffer::unmap() const { return owner_->table().unmap(owner_->self(), handle_); }

}  // namespace flywheel::inline v0::device
