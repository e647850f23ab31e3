// submit and wait.
#include <algorithm>
#include <chrono>
#include <deque>
#include <mutex>
#include <thread>

#include "device_conformance/check.hpp"

namespace flywheel::kit {
namespace {

using clock = std::chrono::steady_clock;

std::vector<flywheel_matmul> decode_like(bench& b) {
  const flywheel_weight_format f = b.formats().front();
  return {make_op(1, 64, 256, f), make_op(1, 32, 256, f)};
}

/// So many workloads of one program, each with operands of its own.
std::deque<bound_workload> make_several(bench& b, std::size_t count, std::uint64_t stream) {
  std::mt19937_64 random = b.random(stream);
  std::deque<bound_workload> out;
  while (out.size() < count)
    out.emplace_back(b.device(), make_workload(decode_like(b), filling::random, random), placing::together,
                     out.empty() ? nullptr : out.front().loaded());
  return out;
}

std::size_t most_in_flight(bench& b, std::size_t limit) {
  return std::min<std::size_t>(b.device().caps().max_in_flight, limit);
}

void check_once(bench& b) {
  auto one = make_several(b, 1, 60);
  for (int i = 0; i < 10; ++i) {
    b.device().wait(one[0].submit());
    one[0].check();
  }
}

void check_no_time(bench& b) {
  probe& d = b.device();
  auto one = make_several(b, 1, 61);
  for (int i = 0; i < 10; ++i) {
    const flywheel_fence fence = one[0].submit();
    const clock::time_point begin = clock::now();
    const flywheel_status status = d.call("wait", d.table().wait, fence, std::uint64_t{0});
    const double took = std::chrono::duration<double>(clock::now() - begin).count();
    if (status == FLYWHEEL_OK) {
      d.forget(fence);
    } else {
      expect(status == FLYWHEEL_TIMEOUT,
             "wait for 0 ns answered " + name_of(status) + "; it must be 'ok' or 'timed out'");
      d.wait(fence);
    }
    expect(took < 1, "wait for 0 ns took " + std::to_string(took) + " s");
    one[0].check();
  }
}

void check_in_flight(bench& b) {
  const std::size_t count = most_in_flight(b, 64);
  auto all = make_several(b, count, 62);
  std::mt19937_64 random = b.random(63);
  for (int round = 0; round < (b.options().quick ? 2 : 6); ++round) {
    std::vector<std::pair<flywheel_fence, std::size_t>> fences;
    for (std::size_t i = 0; i < count; ++i) fences.emplace_back(all[i].submit(), i);
    if (round % 2 == 0)
      std::reverse(fences.begin(), fences.end());
    else
      std::shuffle(fences.begin(), fences.end(), random);
    for (const auto& [fence, i] : fences) {
      b.device().wait(fence);
      all[i].check();
    }
  }
  b.note = std::to_string(count) + " at once, waited for in reverse and at random";
}

/// A result as the scales of the next product, so that only the right order gives the right numbers. Scales of the
/// activations are f32 [rows, groups]: what a product with n = groups writes.
void check_order(bench& b) {
  probe& d = b.device();
  std::mt19937_64 random = b.random(64);
  const std::size_t count = std::max<std::size_t>(2, most_in_flight(b, 16));
  if (most_in_flight(b, 2) < 2) throw not_applicable("caps.max_in_flight is 1");
  const flywheel_weight_format f = b.formats().front();
  flywheel_matmul op = make_op(1, 1, f.group == 0 ? 2048 : 4 * f.group, f);
  op.n = groups_of(op);
  for (int round = 0; round < (b.options().quick ? 4 : 16); ++round) {
    std::deque<bound_workload> chain;
    for (std::size_t i = 0; i < count; ++i) {
      workload w = make_workload({op}, filling::random, random);
      // Products stay of the size that they had.
      for (float& scale : w.weights[0].scales) scale *= 1e-5F;
      chain.emplace_back(d, std::move(w), i % 2 == 0 ? placing::apart : placing::together,
                         i == 0 ? nullptr : chain.front().loaded());
      if (i > 0) chain[i].take_scales_from(0, chain[i - 1].output(0), chain[i - 1].expected()[0]);
    }
    std::vector<flywheel_fence> fences;
    for (std::size_t i = 0; i < count; ++i) {
      std::vector<flywheel_fence> waits;
      if (i > 0) waits.push_back(fences[i - 1]);
      if (i > 1) waits.push_back(fences[i - 2]);
      fences.push_back(chain[i].submit(waits));
    }
    for (std::size_t i = count; i-- > 0;) d.wait(fences[i]);
    for (std::size_t i = 0; i < count; ++i) try {
        chain[i].check();
      } catch (const finding& e) {
        throw finding("submission " + std::to_string(i) +
                      " of a chain, where each waits for the fence of the one before "
                      "and reads its output: " +
                      e.what());
      }
  }
  b.note = "chains of " + std::to_string(count);
}

void check_repeated(bench& b) {
  const std::size_t slots = most_in_flight(b, 4);
  auto all = make_several(b, slots, 65);
  std::deque<std::pair<flywheel_fence, std::size_t>> running;
  const auto finish_one = [&] {
    b.device().wait(running.front().first);
    all[running.front().second].check();
    running.pop_front();
  };
  for (std::size_t i = 0; i < 200; ++i) {
    if (running.size() == slots) finish_one();
    running.emplace_back(all[i % slots].submit(), i % slots);
  }
  while (!running.empty()) finish_one();
  b.note = "200 submissions";
}

void check_threads(bench& b) {
  const std::size_t count = most_in_flight(b, 4);
  if (count < 2) throw not_applicable("caps.max_in_flight is 1");
  auto all = make_several(b, count, 66);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      try {
        std::mt19937_64 random = b.random(70 + i);
        for (int round = 0; round < 25; ++round) {
          all[i].run();
          // Packing and compiling go on beside other threads' submissions.
          if (round % 8 == 0)
            bound_workload(b.device(), make_workload(decode_like(b), filling::random, random), placing::apart).run();
        }
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
    });
  for (std::thread& t : threads) t.join();
  if (first) std::rethrow_exception(first);
  b.note = std::to_string(count) + " threads";
}

constexpr check fence_list[] = {
    {"fences", "fences.wait", "a fence is signalled once its submission has ended", true, check_once},
    {"fences", "fences.no_time", "waiting for no time returns at once", true, check_no_time},
    {"fences", "fences.in_flight", "many submissions in flight, each with its fence", true, check_in_flight},
    {"fences", "fences.order", "submissions wait for the fences that they name", true, check_order},
    {"fences", "fences.repeated", "one row at a time, as in decoding", true, check_repeated},
    {"fences", "fences.threads", "several threads submit at the same time", true, check_threads},
};

}  // namespace

std::span<const check> fence_checks() { return fence_list; }

}  // namespace flywheel::kit
