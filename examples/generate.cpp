// Opens a model, streams text from it, and stops after ten seconds or at Ctrl-C, whichever comes first.
#include <atomic>
#include <chrono>
#include <csignal>
#include <iostream>
#include <thread>

#include "flywheel/flywheel.hpp"

static std::atomic<bool> interrupted = false;

static int fail(const flywheel::error& why) {
  std::cerr << why.to_string() << '\n';
  return 1;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: generate MODEL.gguf PROMPT\n";
    return 2;
  }
  auto model = flywheel::model::open(argv[1]);  // shared by any number of threads and sessions
  if (!model) return fail(model.error());
  auto session = model->new_session();
  if (!session) return fail(session.error());

  std::stop_source stop;
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::jthread watch([&stop](std::stop_token finished) {
    for (int tick = 0; tick < 1000 && !interrupted && !finished.stop_requested(); ++tick)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    stop.request_stop();
  });

  flywheel::generate_options options;
  options.max_tokens = 100;
  options.control.stop = stop.get_token();
  if (auto read = session->prefill(argv[2], options.control); !read) return fail(read.error());
  auto text = session->generate(options, [](const flywheel::generation_step& step) {
    std::cout << step.text << std::flush;
    return true;  // false would stop, too
  });
  if (!text) return fail(text.error());
  std::cout << '\n';
}
