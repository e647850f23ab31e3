// Files of session state. The first byte says what the model remembers and whether the checksum is put right, so that
// what lies behind that check is reached, too.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "flywheel/model/session.hpp"
#include "model/fake_engine.hpp"
#include "src/core/checksum.hpp"

namespace {

using namespace flywheel;

void require(bool holds) {
  if (!holds) std::abort();
}

test::fake_model model_of(const detail::kv_layout& kv) {
  test::fake_shape shape;
  shape.kv = kv;
  shape.n_vocab = 20;
  shape.vocabulary = false;
  return test::fake_model(shape);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::fake_model models[] = {model_of(test::alike(1, 1, 8)), model_of(test::mixed_layers()),
                                            model_of(test::windowed_layers()), model_of({})};
  if (size == 0) return 0;
  const unsigned how = data[0];
  std::vector<std::byte> file(size - 1);
  if (size > 1) std::memcpy(file.data(), data + 1, size - 1);
  if ((how & 4U) != 0 && file.size() >= 8) {
    detail::checksum sum;
    sum.add(std::span(file).first(file.size() - 8));
    const std::uint64_t value = sum.value();
    std::memcpy(file.data() + file.size() - 8, &value, 8);
  }
  session_options options;
  options.n_ctx = 200;
  options.n_batch = 16;
  session s = models[how & 3U].open(options);
  s.prefill(std::vector<token_id>{1, 2}).value();
  const test::snapshot before(s);
  const result<void> restored = s.restore(file);
  if (!restored) {
    require(!restored.error().message.empty());
    require(test::snapshot(s) == before);
    return 0;
  }
  // What was accepted is a whole session: it gives the same file, and goes on.
  require(*s.save() == file);
  if (s.tokens().size() < 200) require(s.decode(3).has_value());
  return 0;
}
