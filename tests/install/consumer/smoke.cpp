// What an embedding program relies on, through the installed headers and library alone. Prints the generated text, so
// that two builds of the library can be compared. usage: smoke MODEL.gguf
#include <cstring>
#include <iostream>
#include <stop_token>

#include "flywheel/flywheel.hpp"
#include "units.hpp"

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::cerr << "smoke: line " << __LINE__ << ": " #condition << '\n'; \
      return 1;                                                            \
    }                                                                      \
  } while (false)

int main(int argc, char** argv) {
  CHECK(argc == 2);
  const unit_facts one = unit_one(), two = unit_two();
  CHECK(one.sizes == two.sizes);
  CHECK(*one.thrown == *two.thrown);
  CHECK(one.q8 && one.q8 == two.q8 && one.q8->block_bytes == 34);
  CHECK(make_shape()->elements() == 8 * 512);
  CHECK(flywheel::version == "0.1.0");
  CHECK(flywheel::detect_isa().has_value());

  // An exception of the library is caught by its type across the library's border.
  const auto missing = flywheel::model::open("no such file.gguf");
  CHECK(!missing && missing.error().code == flywheel::errc::not_found);
  bool caught = false;
  try {
    (void)missing.value();
  } catch (const flywheel::bad_result& thrown) {
    caught = std::strstr(thrown.what(), "no such file.gguf") != nullptr;
  }
  CHECK(caught);

  auto model = flywheel::model::open(argv[1]);
  CHECK(model);
  auto session = model->new_session();
  CHECK(session);
  CHECK(session->prefill("The old man and the"));

  flywheel::generate_options options;
  options.max_tokens = 24;
  options.sampler = flywheel::sampler_options::greedy();
  std::string streamed;
  auto whole = session->generate(options, [&](const flywheel::generation_step& step) {
    streamed += step.text;
    return true;
  });
  CHECK(whole && !whole->text.empty() && whole->text == streamed);
  std::cout << whole->text << '\n';

  // Cancelled from inside after three tokens; the session goes on afterwards.
  std::stop_source stop;
  options.control.stop = stop.get_token();
  options.ignore_eos = true;
  int steps = 0;
  auto cut = session->generate(options, [&](const flywheel::generation_step&) {
    if (++steps == 3) stop.request_stop();
    return true;
  });
  CHECK(cut && cut->reason == flywheel::stop_reason::cancelled && cut->ids.size() < 24);
  const auto refused = session->prefill("more", options.control);
  CHECK(!refused && refused.error().code == flywheel::errc::cancelled);
  CHECK(session->prefill(" more"));
}
