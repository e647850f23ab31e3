// compile, load and unload: programs come from disk, and disks lie.
#include <algorithm>
#include <memory>

#include "device_conformance/check.hpp"

namespace flywheel::kit {
namespace {

std::vector<flywheel_matmul> sample_part(bench& b) {
  const flywheel_weight_format f = b.formats().front();
  return {make_op(1, 64, 256, f), make_op(1, 32, 256, f)};
}

void check_deterministic(bench& b) {
  const auto ops = sample_part(b);
  const std::vector<std::byte> first = b.device().compile(ops, 1), second = b.device().compile(ops, 1);
  b.note = std::to_string(first.size()) + " bytes";
  const auto at = std::mismatch(first.begin(), first.end(), second.begin(), second.end()).first - first.begin();
  expect(first == second,
         "compile gave two programs for one part; they differ from byte " + std::to_string(at) + " on");
}

void check_sink(bench& b) {
  const auto ops = sample_part(b);
  const flywheel_part part = {sizeof part, static_cast<std::uint32_t>(ops.size()), ops.data(), 1};
  const flywheel_sink full = {nullptr,
                              [](void*, const void*, std::uint64_t) -> flywheel_status { return FLYWHEEL_FAILED; }};
  const flywheel_status status = b.device().call("compile", b.device().table().compile, &part, &full);
  expect(status != FLYWHEEL_OK, "compile said ok although the sink took nothing: a full disk would go unnoticed");
}

void check_load(bench& b) {
  probe& d = b.device();
  std::vector<std::byte> blob = d.compile(sample_part(b), 1);
  const std::vector<std::byte> kept = blob;
  auto first = std::make_unique<program>(d, blob);
  auto second = std::make_unique<program>(d, blob);
  expect(first->get() != second->get(), "two loads gave the same program: unloading one would end both");
  expect(blob == kept, "load changed the blob");
  std::fill(blob.begin(), blob.end(), std::byte{0xDD});  // a program does not live on the caller's memory
  first.reset();
  const program third(d, kept);
  second.reset();
  std::mt19937_64 random = b.random(20);
  bound_workload work(d, make_workload(sample_part(b), filling::random, random), placing::apart);
  d.wait(work.submit());  // the device still works; what it computes is for other checks
}

/// A finding unless the device refuses what is no blob of its own in the right way.
void expect_refusal(probe& d, std::span<const std::byte> blob, const std::string& what) {
  flywheel_executable* made = nullptr;
  const flywheel_status status = d.load(blob, made);
  if (status == FLYWHEEL_INCOMPATIBLE || status == FLYWHEEL_CORRUPT) return;
  if (status == FLYWHEEL_OK && made != nullptr) d.call("unload", d.table().unload, made);
  expect(status != FLYWHEEL_OK, "load accepted " + what + "; blobs need a checksum over all their bytes");
  throw finding("load of " + what + " answered " + name_of(status) + "; it must be 'incompatible' or 'corrupt'");
}

void check_truncated(bench& b) {
  probe& d = b.device();
  const std::vector<std::byte> blob = d.compile(sample_part(b), 1);
  int tried = 0;
  for (const std::size_t length : {std::size_t{1}, std::size_t{4}, std::size_t{8}, std::size_t{16}, std::size_t{64},
                                   blob.size() / 4, blob.size() / 2, blob.size() - 8, blob.size() - 1})
    if (length > 0 && length < blob.size()) {
      // In memory of its own size, so that reading beyond it can be seen.
      const std::vector<std::byte> part(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(length));
      expect_refusal(
          d, part,
          "a truncated blob, the first " + std::to_string(length) + " of " + std::to_string(blob.size()) + " bytes");
      ++tried;
    }
  expect_refusal(d, std::span(blob).first(0), "an empty blob");
  b.note = std::to_string(tried + 1) + " lengths";
}

void check_flipped(bench& b) {
  probe& d = b.device();
  std::vector<std::byte> blob = d.compile(sample_part(b), 1);
  std::mt19937_64 random = b.random(21);
  const std::size_t tries = std::min<std::size_t>(blob.size(), b.options().quick ? 64 : 512);
  for (std::size_t i = 0; i < tries; ++i) {
    const std::size_t at = i * blob.size() / tries, bit = random() % 8;
    const std::byte before = blob[at];
    blob[at] ^= std::byte{1} << bit;
    expect_refusal(d, blob,
                   "a corrupt blob, bit " + std::to_string(bit) + " of byte " + std::to_string(at) + " of " +
                       std::to_string(blob.size()) + " flipped");
    blob[at] = before;
  }
  b.note = std::to_string(tries) + " bits";
  const program whole(d, blob);  // and still accepts the right one
}

void check_foreign(bench& b) {
  probe& d = b.device();
  const std::vector<std::byte> blob = d.compile(sample_part(b), 1);
  std::mt19937_64 random = b.random(22);
  for (const std::size_t size : {std::size_t{3}, std::size_t{64}, blob.size(), std::size_t{10000}}) {
    std::vector<std::byte> foreign(size);
    expect_refusal(d, foreign, std::to_string(size) + " zero bytes");
    for (std::byte& byte : foreign) byte = static_cast<std::byte>(random());
    expect_refusal(d, foreign, std::to_string(size) + " random bytes");
  }
  std::vector<std::byte> longer = blob;
  longer.resize(blob.size() + 16);
  expect_refusal(d, longer, "a blob with 16 bytes behind its end");
}

constexpr check program_list[] = {
    {"programs", "compile.deterministic", "a part compiles to the same bytes", false, check_deterministic},
    {"programs", "compile.sink", "a sink that fails ends compile", true, check_sink},
    {"programs", "load.unload", "programs are loaded, unloaded and independent of the blob", true, check_load},
    {"programs", "load.truncated", "truncated and empty blobs are refused", true, check_truncated},
    {"programs", "load.damaged", "blobs with a flipped bit are refused", true, check_flipped},
    {"programs", "load.foreign", "what is no blob is refused", true, check_foreign},
};

}  // namespace

std::span<const check> program_checks() { return program_list; }

}  // namespace flywheel::kit
