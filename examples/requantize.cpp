// Writes a copy of a model with its matrices in another tensor format, rounded plainly, a few MiB at a time. The
// embedded default was made with it:
//   example-requantize tiny-base-f16.gguf tiny-base-q8_0.gguf q8_0
#include <iostream>

#include "flywheel/flywheel.hpp"

int main(int argc, char** argv) {
  const flywheel::dtype_info* wanted = argc == 4 ? flywheel::find_dtype(argv[3]) : nullptr;
  if (!wanted) {
    std::cerr << "usage: requantize MODEL OUT.gguf TYPE     (a GGUF file or a Hugging Face folder; such as q8_0)\n";
    return 2;
  }
  const auto fail = [](const flywheel::error& e) {
    std::cerr << e.to_string() << '\n';
    return 1;
  };
  const auto source = flywheel::open_model_archive(argv[1]);
  if (!source) return fail(source.error());
  flywheel::convert_options options;
  options.type = wanted->type;
  if (const auto done = flywheel::convert(*source, argv[2], options); !done) return fail(done.error());
}
