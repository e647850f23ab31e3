#include "flywheel/core/buffer.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <new>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using namespace flywheel;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

bool aligned(const void* p, std::size_t to) { return reinterpret_cast<std::uintptr_t>(p) % to == 0; }

/// Counts what is out, and fails when it is told to.
class counting_memory final : public std::pmr::memory_resource {
 public:
  std::size_t blocks = 0;
  std::size_t bytes = 0;
  bool exhausted = false;

 private:
  void* do_allocate(std::size_t size, std::size_t align) override {
    if (exhausted) throw std::bad_alloc();
    ++blocks;
    bytes += size;
    void* p = std::pmr::new_delete_resource()->allocate(size, align);
    std::memset(p, 0xff, size);
    return p;
  }
  void do_deallocate(void* p, std::size_t size, std::size_t align) override {
    --blocks;
    bytes -= size;
    std::pmr::new_delete_resource()->deallocate(p, size, align);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

}  // namespace

TEST_CASE("buffers are aligned and writable at every size", "[buffer]") {
  for (const std::size_t size : {std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{4097}, 2 * mib - 1,
                                 2 * mib, 2 * mib + 1, 5 * mib + 12345}) {
    CAPTURE(size);
    result<buffer> made = buffer::allocate(size);
    REQUIRE(made);
    CHECK(made->size() == size);
    CHECK(made->bytes().size() == size);
    CHECK(aligned(made->data(), buffer::alignment));
    std::memset(made->mutable_data(), 0x5a, size);
    CHECK(made->bytes().back() == std::byte{0x5a});
  }
}

#if defined(__linux__) && !defined(FLYWHEEL_SERIAL)
TEST_CASE("large buffers begin at a huge page", "[buffer]") {
  std::vector<buffer> keep;
  for (int i = 0; i < 5; ++i) {
    keep.push_back(buffer::allocate(3 * mib + 4096).value());
    CHECK(aligned(keep.back().data(), 2 * mib));
    std::memset(keep.back().mutable_data(), i, keep.back().size());
  }
  for (int i = 0; i < 5; ++i) CHECK(keep[static_cast<std::size_t>(i)].bytes().back() == static_cast<std::byte>(i));
}
#endif

TEST_CASE("zeros are zeros, used memory included", "[buffer]") {
  for (const std::size_t size : {std::size_t{1000}, 2 * mib, 3 * mib + 1}) {
    for (int round = 0; round < 3; ++round) {
      buffer b = buffer::zeros(size).value();
      CHECK(std::all_of(b.bytes().begin(), b.bytes().end(), [](std::byte x) { return x == std::byte{0}; }));
      std::memset(b.mutable_data(), 0xff, size);
    }
  }
  counting_memory memory;  // gives memory full of ones
  const buffer b = buffer::zeros(3 * mib, &memory).value();
  CHECK(std::all_of(b.bytes().begin(), b.bytes().end(), [](std::byte x) { return x == std::byte{0}; }));
}

TEST_CASE("an empty buffer is valid", "[buffer]") {
  const buffer none;
  CHECK(none.size() == 0);
  const result<buffer> zero = buffer::allocate(0);
  REQUIRE(zero);
  CHECK(zero->size() == 0);
  CHECK(zero->bytes().empty());
  CHECK(buffer::zeros(0));
}

TEST_CASE("what no system has is out of memory", "[buffer]") {
  for (const std::size_t size : {std::size_t{1} << 60, std::size_t{1} << 63, static_cast<std::size_t>(-1),
                                 static_cast<std::size_t>(-1) - 4096, std::size_t{1} << 55}) {
    CAPTURE(size);
    CHECK(buffer::allocate(size).error().code == errc::out_of_memory);
    CHECK(buffer::zeros(size).error().code == errc::out_of_memory);
  }
  CHECK_THROWS_AS(page_resource()->allocate(std::size_t{1} << 60, 64), std::bad_alloc);
}

TEST_CASE("buffers come from the given resource and go back to it", "[buffer]") {
  counting_memory memory;
  {
    buffer a = buffer::allocate(100, &memory).value();
    buffer b = buffer::allocate(200, &memory).value();
    CHECK(memory.blocks == 2);
    CHECK(memory.bytes == 300);
    a = std::move(b);
    CHECK(memory.bytes == 200);
    CHECK(a.size() == 200);
    buffer& self = a;
    a = std::move(self);
    CHECK(a.size() == 200);
    const buffer c = std::move(a);
    CHECK(c.size() == 200);
    CHECK(a.size() == 0);
    CHECK(a.data() == nullptr);
    CHECK(memory.bytes == 200);
  }
  CHECK(memory.blocks == 0);
  CHECK(memory.bytes == 0);
}

TEST_CASE("a resource that fails is an error", "[buffer]") {
  counting_memory memory;
  memory.exhausted = true;
  CHECK(buffer::allocate(100, &memory).error().code == errc::out_of_memory);
  CHECK(buffer::zeros(100, &memory).error().code == errc::out_of_memory);
  CHECK(memory.blocks == 0);
}

TEST_CASE("the page resource serves any alignment", "[buffer]") {
  std::pmr::memory_resource* memory = page_resource();
  for (const std::size_t align : {std::size_t{1}, std::size_t{16}, std::size_t{4096}, 2 * mib, 4 * mib})
    for (const std::size_t size : {std::size_t{10}, std::size_t{5000}, 2 * mib + 3}) {
      void* p = memory->allocate(size, align);
      CHECK(aligned(p, align));
      std::memset(p, 1, size);
      memory->deallocate(p, size, align);
    }
  CHECK(memory->is_equal(*page_resource()));
}
