// Other libraries' matrix products, for bench-kernels to print beside flywheel's: y [m, n] = x [m, k] * w [k, n],
// weights packed before where the library can. Each library runs on threads of its own, as many as asked for.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace flywheel::bench {

struct peer {
  std::string name;
  bool int8;  ///< Held against the int8 roof, else against the f32 one. Activations come quantized.
  /// Prepares a product and returns what runs it once.
  std::function<std::function<void()>(int threads, std::int64_t m, std::int64_t n, std::int64_t k)> prepare;
};

/// Those this program was built with.
std::vector<peer> peers();

// Each in its own file.
void add_onednn(std::vector<peer>& all);
void add_openblas(std::vector<peer>& all);
void add_eigen(std::vector<peer>& all);

}  // namespace flywheel::bench
