#include "flywheel/core/context.hpp"

#include <memory_resource>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "flywheel/core/buffer.hpp"
#include "flywheel/core/progress.hpp"
#include "support/catch.hpp"

using namespace flywheel;

TEST_CASE("an empty context answers with safe defaults", "[context]") {
  const context none;
  CHECK_FALSE(none);
  CHECK(none.executor().concurrency() == 1);
  CHECK(none.memory() == page_resource());
  CHECK(none.isa().selected == "generic");
  CHECK_FALSE(none.logs(log_level::error));
  none.log(log_level::error, "nobody hears this");
}

TEST_CASE("a context is made of its options", "[context]") {
  context_options options;
  options.threads = 2;
  options.isa = "generic";
  const auto pool = std::make_shared<std::pmr::unsynchronized_pool_resource>();
  options.memory = pool;
  const result<context> made = context::create(options);
  REQUIRE(made);
  CHECK(*made);
  CHECK(made->executor().concurrency() == make_thread_team(2).value()->concurrency());
  CHECK(made->isa().selected == "generic");
  CHECK(made->isa().overridden);
  CHECK(made->memory() == pool.get());

  const context copy = *made;
  CHECK(&copy.executor() == &made->executor());
}

TEST_CASE("a context uses the given executor and keeps it", "[context]") {
  context_options options;
  options.executor = make_thread_team(3).value();
  std::weak_ptr<executor> watch = options.executor;
  executor* const given = options.executor.get();
  options.threads = 1;
  {
    const context made = context::create(std::move(options)).value();
    CHECK(&made.executor() == given);
    CHECK(given->concurrency() >= 1);
  }
  if (given != serial_executor().get()) CHECK(watch.expired());
}

TEST_CASE("what is wrong with the options is said", "[context]") {
  context_options isa;
  isa.isa = "no such thing";
  CHECK(context::create(isa).error().code == errc::not_found);
  if (make_thread_team(2).value()->concurrency() == 2) {
    context_options threads;
    threads.threads = max_threads + 1;
    CHECK(context::create(threads).error().code == errc::invalid_argument);
  }
}

TEST_CASE("the log sink receives what passes the threshold", "[context]") {
  std::vector<std::pair<log_level, std::string>> lines;
  context_options options;
  options.executor = serial_executor();
  options.log = [&](log_level level, std::string_view message) { lines.emplace_back(level, message); };

  SECTION("warnings and errors by default") {
    const context c = context::create(options).value();
    CHECK(lines.empty());
    CHECK_FALSE(c.logs(log_level::debug));
    CHECK_FALSE(c.logs(log_level::info));
    CHECK(c.logs(log_level::warning));
    CHECK(c.logs(log_level::error));
    c.log(log_level::info, "one");
    c.log(log_level::warning, "two");
    c.log(log_level::error, "three");
    REQUIRE(lines.size() == 2);
    CHECK(lines[0] == std::pair(log_level::warning, std::string("two")));
    CHECK(lines[1] == std::pair(log_level::error, std::string("three")));
  }
  SECTION("everything on request, the hardware first") {
    options.log_threshold = log_level::debug;
    const context c = context::create(options).value();
    REQUIRE(lines.size() == 1);
    CHECK(lines[0].first == log_level::info);
    CHECK(lines[0].second.find(c.isa().selected) != std::string::npos);
    c.log(log_level::debug, "one");
    CHECK(lines.size() == 2);
  }
  SECTION("only errors") {
    options.log_threshold = log_level::error;
    const context c = context::create(options).value();
    c.log(log_level::warning, "one");
    CHECK(lines.empty());
  }
}

TEST_CASE("without a sink there is no log", "[context]") {
  context_options options;
  options.executor = serial_executor();
  options.log_threshold = log_level::debug;
  CHECK_FALSE(context::create(options)->logs(log_level::error));
}

TEST_CASE("a sink that throws does not stop the work", "[context]") {
  context_options options;
  options.executor = serial_executor();
  options.log = [](log_level, std::string_view) { throw std::runtime_error("sink"); };
  const context c = context::create(options).value();
  c.log(log_level::error, "message");
  CHECK(c);
}

TEST_CASE("a control without a stop token never stops", "[progress]") {
  control c;
  CHECK_FALSE(c.stopped());
  std::stop_source source;
  c.stop = source.get_token();
  CHECK_FALSE(c.stopped());
  source.request_stop();
  CHECK(c.stopped());
}
