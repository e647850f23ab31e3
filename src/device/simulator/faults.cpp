#include "src/device/simulator/faults.hpp"

#include <charconv>
#include <locale>
#include <sstream>
#include <string>

#include "flywheel/detail/try.hpp"

namespace flywheel::inline v0::device::simulation {
namespace {

constexpr std::array<std::string_view, n_faults> fault_names = {"stale_fingerprint", "truncated_blob", "out_of_memory",
                                                                "timeout",           "failed",         "device_lost"};
constexpr std::uint32_t every_fault = (1U << n_faults) - 1;

constexpr std::uint64_t most_delay_us = 60'000'000;
constexpr std::uint64_t most_scratch = std::uint64_t{1} << 30;

error bad(std::string message, std::string_view key) {
  return {errc::invalid_argument, std::move(message), std::string(key)};
}

/// Takes what lies before the next `separator` off the front of `text`.
std::string_view next_word(std::string_view& text, char separator) {
  const std::size_t end = text.find(separator);
  const std::string_view word = text.substr(0, end);
  text = end == text.npos ? std::string_view{} : text.substr(end + 1);
  return word;
}

result<std::uint64_t> whole_number(std::string_view key, std::string_view text, std::uint64_t least,
                                   std::uint64_t most) {
  std::uint64_t value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed == std::errc{} && end == text.data() + text.size() && value >= least && value <= most) return value;
  return bad(
      "'" + std::string(text) + "' is not a whole number from " + std::to_string(least) + " to " + std::to_string(most),
      key);
}

result<double> probability(std::string_view key, std::string_view text) {
  std::istringstream in{std::string(text)};  // from_chars of floats is missing in some standard libraries
  in.imbue(std::locale::classic());
  double value = -1;
  in >> value;
  if (!in.fail() && in.peek() == std::istringstream::traits_type::eof() && value >= 0 && value <= 1) return value;
  return bad("'" + std::string(text) + "' is not a probability from 0 to 1", key);
}

result<std::uint32_t> fault_set(std::string_view text) {
  if (text == "all") return every_fault;
  std::uint32_t set = 0;
  do {
    const std::string_view word = next_word(text, '+');
    std::size_t i = 0;
    while (i < n_faults && fault_names[i] != word) ++i;
    if (i == n_faults) {
      std::string known;
      for (const std::string_view name : fault_names) known.append(name).append(", ");
      return bad("there is no fault '" + std::string(word) + "'; known are " + known + "and all", "faults");
    }
    set |= 1U << i;
  } while (!text.empty());
  return set;
}

}  // namespace

result<npu_options> parse_npu_options(std::string_view text) {
  npu_options out;
  while (!text.empty()) {
    std::string_view value = next_word(text, ',');
    const std::string_view key = next_word(value, '=');
    constexpr std::uint64_t any = ~std::uint64_t{0};
    if (key == "seed") {
      FLYWHEEL_TRY(out.seed, whole_number(key, value, 0, any));
    } else if (key == "delay_us") {
      FLYWHEEL_TRY(out.delay_us, whole_number(key, value, 0, most_delay_us));
    } else if (key == "faults") {
      FLYWHEEL_TRY(out.faults, fault_set(value));
    } else if (key == "fault_rate") {
      FLYWHEEL_TRY(out.fault_rate, probability(key, value));
    } else if (key == "scratch") {
      FLYWHEEL_TRY(out.scratch, whole_number(key, value, 1, most_scratch));
    } else {
      return bad("there is no such option; known are seed, delay_us, faults, fault_rate, scratch", key);
    }
  }
  return out;
}

fault_source::fault_source(const npu_options& options) : enabled_(options.faults), rate_(options.fault_rate) {
  for (std::size_t i = 0; i < n_faults; ++i) decisions_[i].seed(options.seed * n_faults + i);
}

bool fault_source::strikes(fault kind) noexcept {
  const auto i = static_cast<std::size_t>(kind);
  if ((enabled_ >> i & 1U) == 0) return false;
  if (static_cast<double>(decisions_[i]() >> 11) * 0x1p-53 >= rate_) return false;
  ++count_;
  return true;
}

}  // namespace flywheel::inline v0::device::simulation
