// Every allocation that a core call makes is made to fail, alone and with all later ones; the call must report it.
#include "flywheel/core/buffer.hpp"
#include "flywheel/core/context.hpp"
#include "flywheel/core/mapped_file.hpp"
#include "flywheel/core/tensor.hpp"
#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/failing_new.hpp"

using namespace flywheel;

namespace {

/// Fails the first, second, ... allocation of `call` until it gets through; returns how many there were.
template <class Call>
int fail_each_allocation(Call call, bool once) {
  for (int n = 0; n < 1000; ++n) {
    bool ok = false, failed = false;
    errc code = errc::internal;
    {
      const test::fail_allocations trap(static_cast<std::uint64_t>(n), once);
      auto answer = call();
      ok = answer.has_value();
      if (!ok) code = answer.error().code;
      failed = trap.failed();
    }
    CAPTURE(n);
    if (!failed) {
      CHECK(ok);
      return n;
    }
    // A call may do without what it could not get, but what it reports must be this.
    if (!ok) CHECK(code == errc::out_of_memory);
  }
  FAIL("too many allocations");
  return 0;
}

template <class Call>
int fail_each_allocation(Call call) {
  const int alone = fail_each_allocation(call, true);
  CHECK(fail_each_allocation(call, false) == alone);
  return alone;
}

}  // namespace

TEST_CASE("running out of memory is reported", "[out_of_memory]") {
  CHECK(fail_each_allocation([] { return buffer::allocate(1000); }) == 1);
  CHECK(fail_each_allocation([] { return buffer::zeros(1000); }) == 1);
  CHECK(fail_each_allocation([] { return tensor::zeros(dtype::f32, {10, 10}); }) == 1);
  CHECK(fail_each_allocation([] { return detect_isa(); }) > 0);
  const std::filesystem::path path = test::source_file("CMakeLists.txt");
  CHECK(fail_each_allocation([&] { return mapped_file::open(path); }) > 0);
  CHECK(fail_each_allocation([] { return make_thread_team(3); }) >= 0);
  CHECK(fail_each_allocation([] { return context::create(); }) > 0);
  CHECK(fail_each_allocation([] {
          host_pool pool;
          pool.concurrency = [](void*) { return 1U; };
          pool.run = [](void*, unsigned, void (*)(void*, unsigned), void*) {};
          return make_host_executor(pool);
        }) > 0);
}

TEST_CASE("running out of memory while saying what is wrong is reported too", "[out_of_memory]") {
  // The call fails anyway: with its own error when there is memory to say so.
  const bool once = GENERATE(true, false);
  const auto codes = [once](auto call, errc own) {
    for (int n = 0; n < 100; ++n) {
      bool ok = false, failed = false;
      errc code = errc::internal;
      {
        const test::fail_allocations trap(static_cast<std::uint64_t>(n), once);
        auto answer = call();
        failed = trap.failed();
        ok = answer.has_value();
        if (!ok) code = answer.error().code;
      }
      CAPTURE(n);
      REQUIRE_FALSE(ok);
      if (!failed) {
        CHECK(code == own);
        return;
      }
      CHECK((code == own || code == errc::out_of_memory));
    }
    FAIL("too many allocations");
  };
  codes([] { return detect_isa("no such instruction set at all"); }, errc::not_found);
  const std::filesystem::path missing = "/there/is/no/such/file/anywhere";
  codes([&] { return mapped_file::open(missing); }, errc::not_found);
  codes([] { return tensor::zeros(dtype::q4_k, {3, 100}); }, errc::invalid_argument);
  codes([] { return make_host_executor({}); }, errc::invalid_argument);
  codes([] { return buffer::allocate(std::size_t{1} << 60); }, errc::out_of_memory);
}
