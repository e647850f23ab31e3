// How long a caller waits after it has asked a prefill or a generation to stop: from request_stop() to the return of
// the call, over stops at moments spread evenly over the work. One line per kind: median, 99th percentile, maximum.
//
//   bench-cancel MODEL [STOPS]        200 stops of each kind
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stop_token>
#include <thread>
#include <vector>

#include "flywheel/flywheel.hpp"

namespace {

using namespace flywheel;
using clock_type = std::chrono::steady_clock;
using milliseconds = std::chrono::duration<double, std::milli>;

/// Runs `work` to its end once, then `stops` times with a stop at a moment of its own.
void measure(const char* name, int stops, const std::function<void(std::stop_token)>& work) {
  const auto start = clock_type::now();
  work({});
  const auto whole = clock_type::now() - start;
  std::vector<double> waits;
  for (int i = 0; i < stops; ++i) {
    std::stop_source source;
    clock_type::time_point end;
    std::thread worker([&] {
      work(source.get_token());
      end = clock_type::now();
    });
    std::this_thread::sleep_for(whole * (i + 1) / (stops + 2));
    const auto asked = clock_type::now();
    source.request_stop();
    worker.join();
    if (end > asked) waits.push_back(milliseconds(end - asked).count());
  }
  std::sort(waits.begin(), waits.end());
  if (waits.empty()) return;
  std::printf("%-9s %4zu stops of %.0f ms of work: median %.2f ms, 99%% %.2f ms, maximum %.2f ms\n", name, waits.size(),
              milliseconds(whole).count(), waits[waits.size() / 2], waits[waits.size() * 99 / 100], waits.back());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fputs("usage: bench-cancel MODEL [STOPS]\n", stderr);
    return 2;
  }
  const int stops = argc > 2 ? std::atoi(argv[2]) : 200;
  const result<model> opened = model::open(argv[1]);
  if (!opened) {
    std::fprintf(stderr, "%s\n", opened.error().message.c_str());
    return 1;
  }
  result<session> made = opened->new_session({.n_ctx = 1024});
  if (!made) return 1;
  session& s = *made;
  const std::vector<token_id> prompt(512, 100);
  // A failed call is one that was cancelled: its time is what is measured.
  measure("prefill", stops, [&](std::stop_token stop) {
    s.clear();
    if (const auto done = s.prefill(prompt, {{}, stop}); !done && done.error().code != errc::cancelled) std::exit(1);
  });
  measure("decode", stops, [&](std::stop_token stop) {
    s.clear();
    const token_id first[] = {1};
    if (!s.prefill(first)) std::exit(1);
    generate_options options;
    options.max_tokens = 64;
    options.ignore_eos = true;
    options.control.stop = stop;
    if (!s.generate(options)) std::exit(1);
  });
}
