#include "src/model/kv_cache.hpp"

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "fake_engine.hpp"
#include "support/catch.hpp"
#include "support/failing_new.hpp"

namespace flywheel::detail {
namespace {

using test::alike;
using test::fail_allocations;
using test::failing_resource;

const kv_layout layout = alike(3, 2, 8);
constexpr std::size_t page = 2 * 2 * 8 * 64 * sizeof(float);  // one layer, f32

/// Writes a mark into the rows of a position in every layer, where a kernel would: K transposed, V row by row.
template <class F>
void each_element(kv_cache& cache, std::int64_t position, F&& element) {
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    float* p = reinterpret_cast<float*>(cache.pages(static_cast<std::size_t>(layer))[position / 64]);
    const std::int64_t row = position % 64;
    std::uint32_t index = 0;
    for (std::int64_t i = 0; i < 2 * 8; ++i) element(p[i * 64 + row], layer, index++);
    p += 2 * 8 * 64;
    for (std::int64_t head = 0; head < 2; ++head)
      for (std::int64_t i = 0; i < 8; ++i) element(p[(head * 64 + row) * 8 + i], layer, index++);
  }
}

float mark(std::int64_t position, std::int32_t layer, std::uint32_t index, int salt) {
  return static_cast<float>(position * 1000 + layer * 100 + static_cast<std::int64_t>(index)) +
         0.25F * static_cast<float>(salt);
}

void append(kv_cache& cache, std::int64_t count, int salt) {
  const std::int64_t begin = cache.size();
  REQUIRE(cache.reserve(begin + count));
  for (std::int64_t p = begin; p < begin + count; ++p)
    each_element(cache, p, [&](float& e, std::int32_t layer, std::uint32_t i) { e = mark(p, layer, i, salt); });
  cache.advance(begin + count);
}

/// Positions [begin, end) carry the marks of `salt`.
bool holds(kv_cache& cache, std::int64_t begin, std::int64_t end, int salt) {
  bool same = end <= cache.size();
  for (std::int64_t p = begin; same && p < end; ++p)
    each_element(cache, p,
                 [&](float& e, std::int32_t layer, std::uint32_t i) { same &= e == mark(p, layer, i, salt); });
  return same;
}

kv_cache make(std::pmr::memory_resource* memory = nullptr) {
  return std::move(kv_cache::create(layout, dtype::f32, memory)).value();
}

TEST_CASE("pages appear on demand, keep their place and go on truncation", "[kv_cache]") {
  failing_resource memory;
  {
    kv_cache cache = make(&memory);
    CHECK(cache.bytes() == 0);
    append(cache, 1, 1);
    CHECK(memory.live_blocks == 1);
    append(cache, 63, 1);
    CHECK(memory.live_blocks == 1);
    const void* first = cache.pages(2)[0];
    append(cache, 1, 1);
    CHECK(memory.live_blocks == 2);
    append(cache, 2000, 1);
    CHECK(memory.live_blocks == 33);
    CHECK(cache.pages(2)[0] == first);
    CHECK(holds(cache, 0, 2065, 1));
    CHECK(cache.bytes() == *kv_cache::bytes_for(layout, dtype::f32, 2065));
    CHECK(cache.bytes() == static_cast<std::size_t>(memory.live_bytes) + 3 * 64 * sizeof(void*));
    for (std::int32_t layer = 0; layer < 3; ++layer)
      for (std::int64_t i = 0; i < 33; ++i)
        CHECK(reinterpret_cast<std::uintptr_t>(cache.pages(static_cast<std::size_t>(layer))[i]) % 64 == 0);

    cache.truncate(128);
    CHECK(memory.live_blocks == 2);
    cache.truncate(500);  // does not lengthen
    CHECK(cache.size() == 128);
    cache.truncate(100);
    CHECK(memory.live_blocks == 2);
    CHECK(holds(cache, 0, 100, 1));
    append(cache, 70, 2);
    CHECK(holds(cache, 0, 100, 1));
    CHECK(holds(cache, 100, 170, 2));
    cache.truncate(0);
    CHECK(memory.live_blocks == 0);

    // Reserved and never written: given back by a truncation to the same length.
    append(cache, 10, 3);
    REQUIRE(cache.reserve(1000));
    CHECK(memory.live_blocks == 16);
    cache.truncate(10);
    CHECK(memory.live_blocks == 1);
    CHECK(holds(cache, 0, 10, 3));
  }
  CHECK(memory.live_bytes == 0);
}

TEST_CASE("fresh rows are zero, so that masked rows are numbers", "[kv_cache]") {
  kv_cache cache = make();
  REQUIRE(cache.reserve(64));
  bool zero = true;
  for (std::int32_t layer = 0; layer < 3; ++layer)
    for (std::size_t i = 0; i < page; ++i) zero &= cache.pages(static_cast<std::size_t>(layer))[0][i] == std::byte{0};
  CHECK(zero);
}

TEST_CASE("forks share full pages and copy the partly filled one when they write", "[kv_cache]") {
  failing_resource memory;
  {
    kv_cache a = make(&memory);
    append(a, 150, 1);
    CHECK(memory.live_blocks == 3);
    kv_cache b = std::move(a.fork()).value();
    CHECK(memory.live_blocks == 3);
    CHECK(b.bytes() == a.bytes());
    append(b, 1, 2);  // copies the third block
    CHECK(memory.live_blocks == 4);
    append(a, 5, 3);  // alone with its block again: no copy
    CHECK(memory.live_blocks == 4);
    CHECK(holds(a, 0, 150, 1));
    CHECK(holds(a, 150, 155, 3));
    CHECK(holds(b, 0, 150, 1));
    CHECK(holds(b, 150, 151, 2));
    CHECK(a.pages(0)[1] == b.pages(0)[1]);
    CHECK(a.pages(0)[2] != b.pages(0)[2]);

    kv_cache c = std::move(b.fork()).value();
    c.truncate(30);  // now its last page is one that the others have filled
    append(c, 50, 4);
    CHECK(holds(c, 0, 30, 1));
    CHECK(holds(c, 30, 80, 4));
    CHECK(holds(a, 0, 150, 1));
    CHECK(holds(b, 0, 150, 1));

    b = std::move(c);
    CHECK(holds(b, 30, 80, 4));
    kv_cache d = std::move(a.fork()).value();
    a.truncate(0);
    CHECK(holds(d, 0, 150, 1));
    append(a, 10, 5);
    CHECK(holds(d, 150, 155, 3));

    // A page that was reserved and not filled is nobody else's.
    kv_cache e = make(&memory);
    append(e, 64, 6);
    REQUIRE(e.reserve(128));
    kv_cache f = std::move(e.fork()).value();
    append(f, 3, 7);
    append(e, 3, 8);
    CHECK(holds(f, 64, 67, 7));
    CHECK(holds(e, 64, 67, 8));
  }
  CHECK(memory.live_bytes == 0);
}

TEST_CASE("forks on other threads do not disturb each other", "[kv_cache]") {
  kv_cache root = make();
  append(root, 90, 1);
  std::vector<kv_cache> forks;
  for (int i = 0; i < 4; ++i) forks.push_back(std::move(root.fork()).value());
  std::vector<std::thread> threads;
  std::vector<int> good(forks.size());
  for (std::size_t i = 0; i < forks.size(); ++i)
    threads.emplace_back([&, i] {
      const int salt = static_cast<int>(i) + 2;
      kv_cache mine = std::move(forks[i]);
      bool same = true;
      for (int round = 0; round < 20; ++round) {
        mine.truncate(70);
        if (!mine.reserve(200)) return;
        for (std::int64_t p = 70; p < 200; ++p)
          each_element(mine, p, [&](float& e, std::int32_t l, std::uint32_t k) { e = mark(p, l, k, salt); });
        mine.advance(200);
        same &= holds(mine, 0, 70, 1) && holds(mine, 70, 200, salt);
      }
      good[i] = same;
    });
  root.truncate(0);  // lets go while the others copy
  for (std::thread& t : threads) t.join();
  CHECK(good == std::vector<int>{1, 1, 1, 1});
}

TEST_CASE("running out of memory leaves the cache as it was", "[kv_cache]") {
  failing_resource memory;
  kv_cache cache = make(&memory);
  append(cache, 100, 1);
  const kv_cache fork = std::move(cache.fork()).value();
  const std::size_t bytes = cache.bytes();
  // 100 -> 1000 needs a copy of the shared block, which may stay when the rest fails, and 14 new ones.
  for (std::int64_t n = 0; n < 14; ++n) {
    memory.allocations_left = n;
    const result<void> r = cache.reserve(1000);
    REQUIRE(!r);
    CHECK(r.error().code == errc::out_of_memory);
    CHECK(cache.size() == 100);
    CHECK(cache.bytes() >= bytes);  // the page table may have grown
    CHECK(holds(cache, 0, 100, 1));
  }
  CHECK(memory.live_blocks == 3);
  memory.allocations_left = -1;
  append(cache, 900, 2);
  CHECK(holds(cache, 0, 100, 1));
  CHECK(holds(cache, 100, 1000, 2));

  std::uint64_t failures = 0;
  for (std::uint64_t n = 0;; ++n) {
    kv_cache small = make();
    append(small, 10, 1);
    bool done = false;
    {
      const fail_allocations guard(n);
      const result<kv_cache> copy = small.fork();
      const result<void> grown = small.reserve(700);
      failures += !copy;
      failures += !grown;
      done = copy && grown;
    }
    CHECK(small.size() == 10);
    CHECK(holds(small, 0, 10, 1));
    if (done) break;
  }
  CHECK(failures > 10);
}

TEST_CASE("sizes are checked", "[kv_cache]") {
  CHECK(kv_cache::create(layout, dtype::q4_1).error().code == errc::invalid_argument);
  for (const dtype type : {dtype::q8_0, dtype::q4_0}) {
    const error why = kv_cache::create(alike(3, 2, 48), type).error();
    CHECK(why.code == errc::invalid_argument);
    CHECK(why.message.find("use F16 or F32") != std::string::npos);
  }
  CHECK(kv_cache::create(alike(0, 1, 8), dtype::f16)->bytes() == 0);  // a model without memory
  CHECK(kv_cache::create({{kv_slot::recurring(0)}}, dtype::f16).error().code == errc::invalid_argument);
  CHECK(kv_cache::create({{kv_slot::recurring(INT64_MAX)}}, dtype::f16).error().code == errc::invalid_argument);
  CHECK(kv_cache::create(alike(1, -1, 8), dtype::f16).error().code == errc::invalid_argument);
  CHECK(kv_cache::create(alike(2, INT32_MAX, INT32_MAX), dtype::f16).error().code == errc::invalid_argument);
  CHECK(kv_cache::bytes_for(alike(1 << 10, 1 << 20, 1 << 10), dtype::f16, INT64_MAX / 2).error().code ==
        errc::out_of_memory);
  CHECK(*kv_cache::bytes_for(layout, dtype::f32, 0) == 0);
  CHECK(*kv_cache::bytes_for(layout, dtype::f32, 64) == 3 * page + 3 * 8 * sizeof(void*));
  CHECK(*kv_cache::bytes_for(layout, dtype::f16, 65) == 3 * page + 3 * 8 * sizeof(void*));
  // A position of a head is a row of the format: keys and values of 3 layers, 2 heads, 64 positions.
  CHECK(*kv_cache::bytes_for(alike(3, 2, 64), dtype::q8_0, 64) == 3 * 2 * 2 * 64 * 68 + 3 * 8 * sizeof(void*));
  // 4-bit keys have a fifth bit.
  CHECK(*kv_cache::bytes_for(alike(3, 2, 64), dtype::q4_0, 64) == 3 * 2 * 64 * (44 + 36) + 3 * 8 * sizeof(void*));
}

TEST_CASE("the pieces of a file hold the filled rows and nothing else", "[kv_cache]") {
  for (const std::int64_t n : {0, 1, 63, 64, 65, 200}) {
    CAPTURE(n);
    kv_cache a = make();
    append(a, n, 1);
    append(a, 7, 9);
    a.truncate(n);  // rows that were forgotten must not reach the file
    std::vector<std::byte> bytes;
    REQUIRE(a.visit([&](std::span<const std::byte> piece) -> result<void> {
      bytes.insert(bytes.end(), piece.begin(), piece.end());
      return {};
    }));
    CHECK(bytes.size() == static_cast<std::size_t>(n) * 3 * 2 * 2 * 8 * sizeof(float));
    CHECK(bytes.size() == a.stored_bytes(n));
    for (std::size_t i = 0; i + 4 <= bytes.size(); i += 4) {
      float e = 0;
      std::memcpy(&e, &bytes[i], 4);
      if (std::fmod(e, 1.0F) != 0.25F) FAIL_CHECK("a row of another salt at " << i);
    }
    kv_cache b = make();
    std::size_t at = 0;
    REQUIRE(b.restore(n, [&](std::span<std::byte> piece) -> result<void> {
      std::memcpy(piece.data(), bytes.data() + at, piece.size());
      at += piece.size();
      return {};
    }));
    CHECK(holds(b, 0, n, 1));
  }
  kv_cache a = make();
  append(a, 100, 1);
  int calls = 0;
  const result<void> r = a.visit([&](std::span<const std::byte>) -> result<void> {
    if (++calls == 3) return error{errc::io, "disk full", {}};
    return {};
  });
  CHECK((!r && calls == 3));
}

/// Two layers that see everything, two with a window of 100, one with a state of 5 numbers, one without memory.
const kv_layout mixed{{kv_slot::attending(1, 8), kv_slot::attending(2, 16, 100), kv_slot::recurring(5), kv_slot{},
                       kv_slot::attending(1, 8), kv_slot::attending(2, 16, 100)}};
constexpr std::size_t full_block = 2 * 2 * 8 * 64 * sizeof(float);
constexpr std::size_t window_block = 2 * 2 * 2 * 16 * 64 * sizeof(float);

/// Marks the first key of each position in every attending layer, and the state.
void extend(kv_cache& cache, std::int64_t count, int salt) {
  const std::int64_t begin = cache.size();
  REQUIRE(cache.reserve(begin + count));
  for (const std::size_t layer : {0U, 1U, 4U, 5U})
    for (std::int64_t p = begin; p < begin + count; ++p)
      reinterpret_cast<float*>(cache.pages(layer)[p / 64])[p % 64] = mark(p, static_cast<std::int32_t>(layer), 0, salt);
  const auto* before = reinterpret_cast<const float*>(cache.states()[2]);
  auto* after = reinterpret_cast<float*>(cache.next_states()[2]);
  CHECK(before != after);
  for (int i = 0; i < 5; ++i) after[i] = before[i] + static_cast<float>(count);
  cache.advance(begin + count);
}
bool remembers(const kv_cache& cache, int salt) {
  bool same = true;
  for (const std::size_t layer : {0U, 1U, 4U, 5U})
    for (std::int64_t p = layer % 4 == 0 ? 0 : std::max<std::int64_t>(0, cache.size() - 99); p < cache.size(); ++p)
      same &= reinterpret_cast<const float*>(cache.pages(layer)[p / 64])[p % 64] ==
              mark(p, static_cast<std::int32_t>(layer), 0, salt);
  for (int i = 0; i < 5 && cache.size() > 0; ++i)
    same &= reinterpret_cast<const float*>(cache.states()[2])[i] == static_cast<float>(cache.size());
  return same && cache.states()[0] == nullptr && cache.pages(2) == nullptr && cache.pages(3) == nullptr;
}

TEST_CASE("blocks that left their window go, but for one", "[kv_cache]") {
  failing_resource memory;
  {
    kv_cache cache = std::move(kv_cache::create(mixed, dtype::f32, &memory)).value();
    for (const std::int64_t n : {1, 62, 1, 1, 99, 1, 1, 62, 27, 1, 500}) {
      extend(cache, n, 1);
      CAPTURE(cache.size());
      CHECK(remembers(cache, 1));
      CHECK(cache.bytes() == *kv_cache::bytes_for(mixed, dtype::f32, cache.size()));
      const std::int64_t blocks = (cache.size() + 63) / 64;
      const std::int64_t gone = std::max<std::int64_t>(0, (cache.size() - 99) / 64 - 1);
      CHECK(memory.live_blocks == blocks + (blocks - gone) + 2);
      CHECK(static_cast<std::size_t>(memory.live_bytes) == static_cast<std::size_t>(blocks) * full_block +
                                                               static_cast<std::size_t>(blocks - gone) * window_block +
                                                               2 * 64);
    }
    CHECK(cache.size() == 756);
    cache.truncate(756);
    CHECK(cache.size() == 756);
    CHECK(!cache.can_truncate(755));  // the state has moved on
    cache.truncate(755);
    CHECK(cache.size() == 0);
    CHECK(memory.live_blocks == 0);
    extend(cache, 10, 2);
    CHECK(remembers(cache, 2));
  }
  CHECK(memory.live_bytes == 0);
}

TEST_CASE("a window's past is there for a page, then a truncation forgets all", "[kv_cache]") {
  kv_cache cache = std::move(kv_cache::create(alike(1, 1, 8, 100), dtype::f32)).value();
  REQUIRE(cache.reserve(500));
  cache.advance(500);
  // 401 is the first that position 500 sees, in block 6; block 5 is spare: positions from 320 + 99 on have their past.
  CHECK(cache.can_truncate(419));
  CHECK(!cache.can_truncate(418));
  cache.truncate(430);
  CHECK(cache.size() == 430);
  REQUIRE(cache.reserve(431));
  cache.advance(431);
  cache.truncate(418);
  CHECK(cache.size() == 0);
  REQUIRE(cache.reserve(1));
  cache.advance(1);
  CHECK(cache.size() == 1);
}

TEST_CASE("states are copied between forks when one of them goes on", "[kv_cache]") {
  failing_resource memory;
  {
    kv_cache a = std::move(kv_cache::create(mixed, dtype::f32, &memory)).value();
    extend(a, 300, 1);
    const std::int64_t blocks = memory.live_blocks;
    kv_cache b = std::move(a.fork()).value();
    CHECK(memory.live_blocks == blocks);
    extend(b, 7, 1);  // copies the last block of either group; needs a state of its own
    CHECK(memory.live_blocks == blocks + 3);
    CHECK(remembers(a, 1));
    CHECK(remembers(b, 1));
    extend(b, 1, 1);  // what was the state before is a's
    CHECK(memory.live_blocks == blocks + 4);
    CHECK(remembers(a, 1));
    for (int i = 0; i < 10; ++i) extend(a, 30, 1), extend(b, 30, 1);
    CHECK(remembers(a, 1));
    CHECK(remembers(b, 1));
    const std::uint64_t before = test::allocation_count();
    extend(a, 1, 1);
    CHECK(test::allocation_count() == before);  // a token allocates nothing
  }
  CHECK(memory.live_bytes == 0);
}

TEST_CASE("what a file holds of windows and states is enough to go on", "[kv_cache]") {
  for (const std::int64_t n : {0, 1, 64, 100, 163, 164, 700}) {
    CAPTURE(n);
    kv_cache a = std::move(kv_cache::create(mixed, dtype::f32)).value();
    if (n > 0) extend(a, n, 1);
    std::vector<std::byte> bytes;
    REQUIRE(a.visit([&](std::span<const std::byte> piece) -> result<void> {
      bytes.insert(bytes.end(), piece.begin(), piece.end());
      return {};
    }));
    CHECK(bytes.size() == a.stored_bytes(n));
    CHECK(bytes.size() <= *kv_cache::bytes_for(mixed, dtype::f32, n));
    failing_resource memory;
    {
      kv_cache b = std::move(kv_cache::create(mixed, dtype::f32, &memory)).value();
      std::size_t at = 0;
      const auto read = [&](std::span<std::byte> piece) -> result<void> {
        std::memcpy(piece.data(), bytes.data() + at, piece.size());
        at += piece.size();
        return {};
      };
      memory.allocations_left = 3;
      if (n > 64) CHECK(b.restore(n, read).error().code == errc::out_of_memory);
      memory.allocations_left = -1;
      kv_cache c = std::move(kv_cache::create(mixed, dtype::f32, &memory)).value();
      REQUIRE(c.restore(n, read));
      CHECK(at == bytes.size());
      CHECK(remembers(c, 1));
      extend(c, 90, 1);
      CHECK(remembers(c, 1));
    }
    CHECK(memory.live_bytes == 0);
  }
}

TEST_CASE("the layout comes from the nodes of a graph", "[kv_cache]") {
  graph::graph g;
  const auto attention = [&](std::int64_t layer, std::int64_t heads, std::int64_t window) {
    graph::attention_attributes a;
    a.layer = layer;
    a.n_heads = a.n_kv_heads = heads;
    a.head_dim = 16;
    a.window = window;
    g.nodes.push_back({graph::op::attention, {}, {}, a});
  };
  attention(0, 2, 0);
  attention(2, 4, 64);
  attention(2, 4, 128);  // shares the slot and sees more
  CHECK(*layout_of(g) == kv_layout{{kv_slot::attending(2, 16), kv_slot{}, kv_slot::attending(4, 16, 128)}});
  attention(2, 4, 0);
  CHECK(layout_of(g)->slots[2].window == 0);
  CHECK(layout_of(g)->digest() != kv_layout{}.digest());
  attention(2, 2, 0);
  CHECK(layout_of(g).error().code == errc::invalid_argument);
  g.nodes.pop_back();
  attention(-1, 2, 0);
  CHECK(layout_of(g).error().code == errc::invalid_argument);
}

}  // namespace
}  // namespace flywheel::detail
