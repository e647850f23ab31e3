// The library against the reference passes, for architectures without a case in the conformance set.
#include <string>
#include <vector>

#include "flywheel/model/model.hpp"
#include "src/model/architecture.hpp"
#include "model/reference/random_models.hpp"
#include "model/reference/references.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"

using namespace flywheel;
using namespace flywheel::test;

namespace {

/// In standard deviations of the reference's results: the conformance set's tolerances.
double tolerance_of(dtype kv) { return kv == dtype::f32 ? 1e-3 : 2e-2; }

/// An architecture of which the library knows nothing yet is reported, not failed.
bool known(const std::string& architecture) {
  const auto found = detail::find_architecture(architecture);
  if (!found) WARN("skipped: " << found.error().message);
  return static_cast<bool>(found);
}

}  // namespace

TEST_CASE("logits agree with the reference passes", "[reference]") {
  const temp_folder folder;
  // More than two KV pages, and chunks that end inside of pages and windows.
  const auto ids = reference::random_ids(150, 320);
  for (const reference::random_model& original : reference::random_models()) {
    if (original.meta.contains(original.architecture() + ".pooling_type") || !known(original.architecture())) continue;
    const std::filesystem::path path = folder / (original.name + ".gguf");
    original.write(path);
    const reference::rows want = reference::predict(reference::model_file(path), ids).logits;
    const model m = model::open(path).value();
    for (const dtype kv : {dtype::f32, dtype::f16}) {
      INFO(original.name << ", KV " << to_string(kv));
      session_options options;
      options.kv_type = kv;
      options.n_batch = 40;
      session s = m.new_session(options).value();
      std::vector<double> got;
      s.prefill_rows(ids, 1, [&](std::size_t, std::span<const float> row) -> result<void> {
         got.insert(got.end(), row.begin(), row.end());
         return {};
       }).value();
      CHECK(reference::difference(got, reference::flat(want)) < tolerance_of(kv));

      // Token by token behind a prefill.
      session stepped = m.new_session(options).value();
      const std::size_t start = 60;
      stepped.prefill(std::span(ids).first(start)).value();
      got.clear();
      for (std::size_t t = start; t < ids.size(); ++t) {
        stepped.decode(ids[t]).value();
        got.insert(got.end(), stepped.logits().begin(), stepped.logits().end());
      }
      const reference::rows tail(want.begin() + static_cast<std::ptrdiff_t>(start), want.end());
      CHECK(reference::difference(got, reference::flat(tail)) < tolerance_of(kv));
    }
  }
}
