#include "src/model/adapter_set.hpp"

#include <cmath>
#include <string>

#include "src/core/checksum.hpp"

namespace flywheel::inline v0::detail {

result<adapter_set> adapter_set::create(const model::state& of, std::span<const adapter_use> uses) {
  adapter_set out;
  for (std::size_t i = 0; i < uses.size(); ++i) {
    const auto invalid = [&](const char* what) {
      return error{errc::invalid_argument, what, "adapters[" + std::to_string(i) + "]"};
    };
    const adapter_use& use = uses[i];
    if (!use.adapter) return invalid("the adapter handle is empty; open an adapter first");
    if (use.adapter.shared()->base.get() != &of) return invalid("the adapter was opened for another model");
    if (!std::isfinite(use.scale)) return invalid("the scale is not a finite number");
    if (use.scale == 0) continue;
    out.shares.push_back({&use.adapter.shared()->weights, use.scale});
    out.width += use.adapter.shared()->weights.width;
  }
  out.uses.assign(uses.begin(), uses.end());
  return out;
}

std::uint32_t adapter_set::digest() const noexcept {
  if (shares.empty()) return 0;
  checksum sum;
  for (const adapter_use& use : uses) {
    if (use.scale == 0) continue;
    sum.add(std::as_bytes(std::span(&use.adapter.shared()->digest, 1)));
    sum.add(std::as_bytes(std::span(&use.scale, 1)));
  }
  const auto folded = static_cast<std::uint32_t>(sum.value() ^ (sum.value() >> 32));
  return folded == 0 ? 1 : folded;
}

}  // namespace flywheel::inline v0::detail
