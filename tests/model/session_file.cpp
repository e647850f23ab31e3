// Saving and restoring sessions.
#include <algorithm>
#include <cstring>
#include <fstream>

#include "fake_engine.hpp"
#include "flywheel/model/session.hpp"
#include "src/core/checksum.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"

namespace flywheel {
namespace {

using test::copy;
using test::fake_model;
using test::fake_shape;
using test::logits_after;
using test::snapshot;
using test::some_ids;

session_options file_options(std::int32_t n_ctx, dtype kv_type = dtype::f16) {
  session_options o;
  o.n_ctx = n_ctx;
  o.n_batch = 16;
  o.kv_type = kv_type;
  return o;
}

/// Puts the right checksum at the end, so that the checks behind it are reached.
void sign(std::vector<std::byte>& file) {
  detail::checksum sum;
  sum.add(std::span(file).first(file.size() - 8));
  const std::uint64_t value = sum.value();
  std::memcpy(file.data() + file.size() - 8, &value, 8);
}

template <class T>
void put(std::vector<std::byte>& file, std::size_t at, T value) {
  std::memcpy(file.data() + at, &value, sizeof value);
}

TEST_CASE("a state whose keys are rotated otherwise is refused", "[session_file]") {
  fake_shape shape;
  shape.kv.long_rotation_beyond = 100;
  const fake_model m(shape);
  session brief = m.open(file_options(90)), extended = m.open(file_options(200));
  for (session* from : {&brief, &extended}) {
    REQUIRE(from->prefill(some_ids(20)));
    const std::vector<std::byte> bytes = std::move(from->save()).value();
    for (const std::int32_t n_ctx : {80, 101}) {
      session to = m.open(file_options(n_ctx));
      const auto done = to.restore(bytes);
      CHECK(done.has_value() == ((from == &brief) == (n_ctx == 80)));
      if (!done) CHECK(done.error().code == errc::invalid_argument);
    }
  }
}

TEST_CASE("a restored session continues as the saved one", "[session_file]") {
  using slot = detail::kv_slot;
  const detail::kv_layout mixed{{slot::attending(1, 32), slot{}, slot::attending(1, 32, 70), slot::recurring(3)}};
  fake_shape shape;
  shape.kv = GENERATE_COPY(test::alike(2, 2, 32), mixed);
  const fake_model m(shape);
  const test::temp_folder folder;
  for (const dtype type : {dtype::f16, dtype::f32, dtype::q8_0, dtype::q4_0})
    for (const std::size_t n : {0U, 1U, 63U, 64U, 65U, 150U}) {
      CAPTURE(n);
      const std::vector<token_id> ids = some_ids(n);
      session a = m.open(file_options(200, type));
      if (n > 0) REQUIRE(a.prefill(ids));
      const std::vector<std::byte> bytes = std::move(a.save()).value();
      REQUIRE(a.save(folder / "state"));
      CHECK(test::read_bytes(folder / "state") == bytes);

      session b = m.open(file_options(160, type));
      REQUIRE(b.prefill(some_ids(80, 5)));  // to be replaced
      REQUIRE(b.restore(bytes));
      CHECK(snapshot(a) == snapshot(b));
      CHECK(*b.save() == bytes);
      session c = m.open(file_options(160, type));
      REQUIRE(c.restore(folder / "state"));
      std::vector<token_id> all = ids;
      for (session* s : {&a, &b, &c}) REQUIRE(s->prefill(some_ids(5, 9)));
      for (const token_id id : some_ids(5, 9)) all.push_back(id);
      for (session* s : {&a, &b, &c}) CHECK(copy(s->logits()) == logits_after(m, all, file_options(0, type)));
    }
  // Nothing but the file itself is left in the folder.
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("a session whose last tokens were not computed is saved as it is", "[session_file]") {
  const fake_model m;
  session a = m.open(file_options(200));
  REQUIRE(a.prefill(some_ids(100)));
  REQUIRE(a.truncate(70));
  generate_options o;
  o.max_tokens = 3;
  o.ignore_eos = true;
  REQUIRE(a.generate(o));
  session b = m.open(file_options(200));
  REQUIRE(b.restore(*a.save()));
  CHECK(copy(b.tokens()) == copy(a.tokens()));
  CHECK(b.logits().empty());
  REQUIRE(b.compute());
  CHECK(copy(b.logits()) == logits_after(m, a.tokens()));
}

TEST_CASE("what was forgotten is not saved", "[session_file]") {
  fake_shape shape;
  shape.kv = GENERATE(test::alike(2, 2, 8), test::windowed_layers(), test::mixed_layers());
  const fake_model m(shape);
  session a = m.open(file_options(200));
  REQUIRE(a.prefill(some_ids(100)));
  REQUIRE(a.truncate(70));
  REQUIRE(a.compute());
  session b = m.open(file_options(200));
  REQUIRE(b.prefill(some_ids(70)));
  CHECK(*a.save() == *b.save());
}

TEST_CASE("damaged files are refused and change nothing", "[session_file]") {
  fake_shape shape;
  shape.kv = GENERATE(test::alike(2, 2, 8), test::mixed_layers());
  shape.n_vocab = 300;
  shape.vocabulary = false;
  const fake_model m(shape);
  session a = m.open(file_options(20));
  REQUIRE(a.prefill(std::vector<token_id>{4, 5, 6}));
  const std::vector<std::byte> good = std::move(a.save()).value();
  session b = m.open(file_options(20));
  REQUIRE(b.prefill(std::vector<token_id>{7, 8}));
  const snapshot before(b);
  const auto refused = [&](std::span<const std::byte> bytes) {
    const result<void> r = b.restore(bytes);
    return !r && !r.error().message.empty() && snapshot(b) == before;
  };
  for (std::size_t n = 0; n < good.size(); ++n) REQUIRE(refused(std::span(good).first(n)));
  for (std::size_t i = 0; i < good.size(); ++i)
    for (const unsigned bit : {0U, 7U}) {
      std::vector<std::byte> bad = good;
      bad[i] ^= std::byte{1} << bit;
      REQUIRE(refused(bad));
    }
  std::vector<std::byte> longer = good;
  longer.push_back({});
  CHECK(refused(longer));

  // Rightly signed nonsense.
  const auto code = [&](std::size_t at, auto value) {
    std::vector<std::byte> bad = good;
    put(bad, at, value);
    sign(bad);
    const result<void> r = b.restore(bad);
    CHECK(snapshot(b) == before);
    return r ? errc::internal : r.error().code;
  };
  CHECK(code(8, std::uint32_t{1}) == errc::unsupported);
  CHECK(code(12, std::uint32_t{9}) == errc::malformed);
  CHECK(code(16, std::uint64_t{78}) == errc::invalid_argument);
  CHECK(code(24, std::uint64_t{78}) == errc::invalid_argument);
  CHECK(code(32, static_cast<std::uint32_t>(dtype::f32)) == errc::invalid_argument);
  CHECK(code(36, std::uint32_t{999}) == errc::invalid_argument);
  CHECK(code(40, std::uint32_t{999}) == errc::invalid_argument);
  CHECK(code(44, std::uint32_t{1}) == errc::invalid_argument);
  CHECK(code(48, std::uint64_t{21}) == errc::invalid_argument);
  CHECK(code(48, UINT64_MAX) == errc::invalid_argument);
  CHECK(code(48, std::uint64_t{4}) == errc::malformed);
  CHECK(code(48, std::uint64_t{0}) == errc::malformed);
  CHECK(code(56, UINT64_MAX) == errc::malformed);
  CHECK(code(56, std::uint64_t{2}) == errc::malformed);
  CHECK(code(64, std::int32_t{-1}) == errc::malformed);
  CHECK(code(68, std::int32_t{300}) == errc::malformed);
  REQUIRE(b.restore(good));
  CHECK(snapshot(b) == snapshot(a));
}

TEST_CASE("files for other sessions are refused with the reason", "[session_file]") {
  const fake_model m;
  const test::temp_folder folder;
  session a = m.open(file_options(100));
  REQUIRE(a.prefill(some_ids(50)));
  REQUIRE(a.save(folder / "state"));
  const auto why = [&](session s) {
    const result<void> r = s.restore(folder / "state");
    CHECK(s.tokens().empty());
    if (r) return error{};
    CHECK(r.error().where == (folder / "state").string());
    return r.error();
  };
  CHECK(why(m.open(file_options(49))).code == errc::invalid_argument);
  CHECK(why(m.open(file_options(49))).message.find("n_ctx") != std::string::npos);
  CHECK(why(m.open(file_options(100, dtype::f32))).message.find("F16") != std::string::npos);
  fake_shape wide;
  wide.kv = test::alike(2, 2, 32);
  const fake_model other_heads(wide);
  REQUIRE(other_heads.open(file_options(100, dtype::q8_0)).save(folder / "q8_0"));
  const result<void> q4 = other_heads.open(file_options(100, dtype::q4_0)).restore(folder / "q8_0");
  CHECK((!q4 && q4.error().message.find("Q8_0") != std::string::npos));
  fake_shape other;
  other.digest = 78;
  CHECK(why(fake_model(other).open(file_options(100))).message.find("another model") != std::string::npos);
  session b = m.open(file_options(100));
  CHECK(b.restore(folder / "absent").error().code == errc::not_found);
  CHECK(a.save(folder / "no folder" / "state").error().code == errc::not_found);
  std::ofstream(folder / "empty").close();
  CHECK(b.restore(folder / "empty").error().code == errc::malformed);
  // A second save replaces the first.
  REQUIRE(a.decode(5));
  REQUIRE(a.save(folder / "state"));
  REQUIRE(b.restore(folder / "state"));
  CHECK(b.tokens().size() == 51);
}

}  // namespace
}  // namespace flywheel
