#include "cli/conformance/cases.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "flywheel/formats/formats.hpp"

namespace flywheel::cli {

void conformance_run::check_stopped() const {
  if (stop.stop_requested()) cli::fail(errc::cancelled, folder.string(), "stopped");
}

json read_json(const std::filesystem::path& path) {
  json value = json::parse(read_file(path), nullptr, false);
  if (value.is_discarded()) fail(errc::malformed, path.string(), "is not JSON");
  return value;
}

std::vector<float> read_floats(const io::archive& file, std::string_view name) {
  const io::tensor_info* found = file.find(name);
  if (found == nullptr) fail(errc::not_found, file.path().string(), "has no tensor " + std::string(name));
  std::vector<float> values(static_cast<std::size_t>(found->dims.elements()));
  formats::decode(file.view(*found).value(), values).value();
  return values;
}

double deviation(std::span<const float> values) {
  if (values.empty()) return 1;
  double sum = 0;
  for (const float v : values) sum += v;
  const double mean = sum / static_cast<double>(values.size());
  double squares = 0;
  for (const float v : values) squares += (v - mean) * (v - mean);
  const double root = std::sqrt(squares / static_cast<double>(values.size()));
  return root > 0 ? root : 1;
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double delta = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(delta <= worst)) worst = std::isnan(delta) ? std::numeric_limits<double>::infinity() : delta;
  }
  return worst;
}

std::string scientific(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", value);
  return text;
}

}  // namespace flywheel::cli
