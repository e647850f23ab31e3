#include "flywheel/core/result.hpp"

#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "flywheel/detail/try.hpp"
#include "support/catch.hpp"

using namespace flywheel;

namespace {

result<int> half(int x) {
  if (x % 2 != 0) return error{errc::invalid_argument, "is odd", std::to_string(x)};
  return x / 2;
}

result<std::string> quarter(int x) {
  FLYWHEEL_TRY(const int first, half(x));
  FLYWHEEL_TRY(const int second, half(first));
  return std::to_string(second);
}

result<void> even(int x) {
  FLYWHEEL_CHECK(half(x));
  return {};
}

}  // namespace

TEST_CASE("a result holds a value or an error", "[result]") {
  const result<int> good = half(8);
  REQUIRE(good);
  CHECK(good.has_value());
  CHECK(*good == 4);
  CHECK(good.value() == 4);
  CHECK(good.value_or(9) == 4);

  const result<int> bad = half(3);
  REQUIRE_FALSE(bad);
  CHECK(bad.error().code == errc::invalid_argument);
  CHECK(bad.error().to_string() == "3: is odd");
  CHECK(bad.value_or(9) == 9);
}

TEST_CASE("value() throws what went wrong", "[result]") {
  try {
    (void)half(3).value();
    FAIL("no exception");
  } catch (const bad_result& e) {
    CHECK(e.why().code == errc::invalid_argument);
    CHECK(std::string(e.what()) == "3: is odd");
  }
  CHECK_THROWS_AS(even(3).value(), bad_result);
  CHECK_NOTHROW(even(2).value());
}

TEST_CASE("an error without a place is its message", "[result]") {
  CHECK(error{errc::io, "disk full", {}}.to_string() == "disk full");
}

TEST_CASE("results move and copy", "[result]") {
  result<std::unique_ptr<int>> owner = std::make_unique<int>(7);
  REQUIRE(owner);
  CHECK(**owner == 7);
  const std::unique_ptr<int> taken = *std::move(owner);
  CHECK(*taken == 7);

  result<std::vector<int>> a = std::vector<int>{1, 2, 3};
  result<std::vector<int>> b = a;
  b->push_back(4);
  CHECK(a->size() == 3);
  CHECK(b->size() == 4);
  b = error{errc::io, "lost", {}};
  CHECK_FALSE(b);
  b = a;
  REQUIRE(b);
  CHECK(b->size() == 3);
  result<std::vector<int>> c = error{errc::io, "lost", {}};
  a = std::move(c);
  REQUIRE_FALSE(a);
  CHECK(a.error().message == "lost");
}

TEST_CASE("a result of nothing is success or an error", "[result]") {
  CHECK(even(2));
  const result<void> bad = even(1);
  REQUIRE_FALSE(bad);
  CHECK(bad.error().where == "1");
  result<void> copy = bad;
  CHECK_FALSE(copy);
  copy = result<void>{};
  CHECK(copy);
}

TEST_CASE("the helpers pass the first error on", "[result]") {
  CHECK(quarter(8).value() == "2");
  CHECK(quarter(6).error().where == "3");
  CHECK(quarter(5).error().where == "5");
}

TEST_CASE("every code has a name of its own", "[result]") {
  const errc all[] = {errc::invalid_argument, errc::not_found, errc::io,           errc::malformed, errc::unsupported,
                      errc::out_of_memory,    errc::cancelled, errc::context_full, errc::device,    errc::internal};
  for (const errc a : all) {
    CHECK(to_string(a) != "unknown");
    for (const errc b : all) CHECK((a == b) == (to_string(a) == to_string(b)));
  }
  CHECK(to_string(static_cast<errc>(200)) == "unknown");
}

TEST_CASE("the border turns exceptions into errors", "[result]") {
  const auto code_of = [](auto&& body) {
    return detail::guarded([&]() -> result<int> {
             body();
             return 1;
           })
        .error()
        .code;
  };
  CHECK(detail::guarded([]() -> result<int> { return 1; }).value() == 1);
  CHECK(code_of([] { throw std::bad_alloc(); }) == errc::out_of_memory);
  CHECK(code_of([] { throw std::length_error("too long"); }) == errc::out_of_memory);
  CHECK(code_of([] { throw std::system_error(std::make_error_code(std::errc::io_error)); }) == errc::io);
  CHECK(code_of([] { throw std::runtime_error("surprise"); }) == errc::internal);
  CHECK(code_of([] { throw 3; }) == errc::internal);
}
