// The merges that the family of test models comes with: every tensor's checksums.
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "flywheel/adapt/merge/selection.hpp"
#include "flywheel/adapt/merge/slerp.hpp"
#include "flywheel/adapt/merge/ties.hpp"
#include "flywheel/adapt/merge_models.hpp"
#include "flywheel/formats/formats.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"

namespace {

using namespace flywheel;
namespace merge = flywheel::adapt::merge;
using nlohmann::json;

/// Golden merges are computed in f32, whose results differ by a rounding per operation (6e-8 of a value, four of them
/// at most). Means, deviations and single values may differ by this much of a tensor's largest value.
constexpr double golden_tolerance = 1e-6;

struct golden_merge {
  const char* name;
  std::vector<const char*> models;
  const char* base;
  std::map<std::string, double> values;
};

std::vector<float> read_values(const io::archive& from, const std::string& name) {
  const io::tensor_info& tensor = *from.find(name);
  std::vector<float> values(static_cast<std::size_t>(tensor.dims.elements()));
  formats::decode(from.view(tensor).value(), values).value();
  return values;
}

/// How many entries have the magnitude at which TIES cuts, and what slerp decides by.
void check_decisions(const golden_merge& one, const adapt::merge_plan& plan, const std::string& name,
                     const json& expected) {
  if (std::string(one.name) == "slerp") {
    const std::vector<float> x = read_values(plan.models[0], name), base = read_values(plan.models[1], name);
    const auto n = static_cast<std::int64_t>(x.size());
    const double products[] = {merge::dot(base.data(), base.data(), nullptr, n),
                               merge::dot(base.data(), x.data(), nullptr, n),
                               merge::dot(x.data(), x.data(), nullptr, n)};
    const merge::gram g(products, 2);
    double c[2];
    merge::slerp_rule{0.5}(g, c);
    CHECK(std::abs(g.cosine(0, 1, 0) - expected["cosine"].get<double>()) < 1e-12);
    CHECK((expected["used"] == "lerp") == (c[0] == 0.5 && c[1] == 0.5));
    if (expected.contains("s0")) CHECK(std::abs(c[0] - expected["s0"].get<double>()) < 1e-12);
  } else if (std::string(one.name) == "ties") {
    const std::vector<float> base = read_values(plan.models.back(), name);
    for (std::size_t m = 0; m < one.models.size(); ++m) {
      const std::vector<float> x = read_values(plan.models[m], name);
      const auto n = static_cast<std::int64_t>(x.size());
      merge::selection select(std::vector<std::vector<std::uint64_t>>{{merge::largest(0.5, n).last}});
      while (select.counts() > 0) {
        std::vector<std::uint64_t> counts(select.counts());
        select.look(
            0, n, [&](std::int64_t i) { return x[static_cast<std::size_t>(i)] - base[static_cast<std::size_t>(i)]; },
            counts);
        select.finish(counts);
      }
      const merge::cut& c = select.cuts(0)[0];
      CHECK((c.ordered() ? c.equal : 0) == expected["entries_tied_at_threshold"][m].get<std::uint64_t>());
    }
  }
}

TEST_CASE("Golden merges of the family", "[adapt][merge][golden]") {
  FLYWHEEL_REQUIRE_SHARED(family, "family");
  json golden;
  std::ifstream(family / "golden/merges.json") >> golden;
  const golden_merge merges[] = {
      {"linear", {"legal-full", "tutoring-full", "telemetry-full"}, nullptr, {{"weight", 1}}},
      {"slerp", {"tutoring-full"}, "legal-full", {{"t", 0.5}}},
      {"task_arithmetic", {"legal-full", "tutoring-full", "telemetry-full"}, "tiny-base", {{"weight", 0.5}}},
      {"ties",
       {"legal-full", "tutoring-full", "telemetry-full"},
       "tiny-base",
       {{"weight", 1}, {"density", 0.5}, {"lambda", 1}}}};
  CHECK(golden["merges"].size() == std::size(merges));
  for (const golden_merge& one : merges) {
    CAPTURE(one.name);
    const json& expected = golden["merges"][one.name]["tensors"];
    adapt::merge_plan plan;
    const auto add = [&](const char* name) {
      plan.models.push_back(io::archive::open(family / "models" / name / "hf/model.safetensors").value());
    };
    for (const char* name : one.models) add(name);
    if (one.base != nullptr) add(one.base);
    const merge::method* how = adapt::find_merge_method(one.name);
    REQUIRE(how != nullptr);
    for (const io::tensor_info& tensor : plan.models.front().tensors()) {
      adapt::merge_step step;
      step.name = tensor.name;
      step.dims = tensor.dims;
      step.type = dtype::f32;
      step.how = how;
      for (std::size_t m = 0; m < one.models.size(); ++m) step.inputs.push_back({m, tensor.name});
      if (one.base != nullptr) step.base = {one.models.size(), tensor.name};
      for (const merge::parameter_info& p : how->parameters) {
        const auto given = one.values.find(std::string(p.name));
        for (std::size_t m = 0; m < (p.per_model ? one.models.size() : 1); ++m)
          step.parameters.push_back(given == one.values.end() ? p.fallback : given->second);
      }
      plan.steps.push_back(std::move(step));
    }
    const io::archive merged = adapt::merge_in_memory(plan).value();
    REQUIRE(merged.tensors().size() == expected.size());
    for (const io::tensor_info& tensor : merged.tensors()) {
      CAPTURE(tensor.name);
      REQUIRE(expected.contains(tensor.name));
      const json& sums = expected[tensor.name];
      const auto values = merged.view(tensor).value().as<float>();
      double sum = 0, squares = 0, largest = 0;
      for (const float v : values) {
        sum += static_cast<double>(v);
        squares += static_cast<double>(v) * static_cast<double>(v);
        largest = std::max(largest, std::abs(static_cast<double>(v)));
      }
      const auto n = static_cast<double>(values.size());
      const double mean = sum / n, deviation = std::sqrt(std::max(squares / n - mean * mean, 0.0));
      const double allowed = golden_tolerance * largest;
      CHECK(std::abs(mean - sums["mean"].get<double>()) <= allowed);
      CHECK(std::abs(deviation - sums["std"].get<double>()) <= allowed);
      CHECK(std::abs(std::sqrt(squares / n) - sums["l2"].get<double>() / std::sqrt(n)) <= allowed);
      for (std::size_t i = 0; i < 8; ++i)
        CHECK(std::abs(static_cast<double>(values[i]) - sums["first8"][i].get<double>()) <= allowed);
      check_decisions(one, plan, tensor.name, sums);
    }
  }
}

}  // namespace
