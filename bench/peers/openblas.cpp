// OpenBLAS: f32. The name tells which processor it takes this one for: it may guess low, OPENBLAS_CORETYPE corrects it.
#include <cblas.h>

#include <memory>

#include "bench/peers/peers.hpp"

namespace flywheel::bench {
namespace {

struct matrices {
  std::vector<float> x, w, y;
};

}  // namespace

void add_openblas(std::vector<peer>& all) {
  all.push_back({std::string("openblas_f32_") + openblas_get_corename(), false,
                 [](int threads, std::int64_t m, std::int64_t n, std::int64_t k) {
                   const auto p = std::make_shared<matrices>();
                   p->x.resize(static_cast<std::size_t>(m * k), 0.5f);
                   p->w.resize(static_cast<std::size_t>(n * k), 0.25f);
                   p->y.resize(static_cast<std::size_t>(m * n));
                   return [=]() -> void {
                     const auto rows = static_cast<blasint>(m), cols = static_cast<blasint>(n),
                                inner = static_cast<blasint>(k);
                     openblas_set_num_threads(threads);
                     cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, cols, inner, 1, p->x.data(), inner,
                                 p->w.data(), inner, 0, p->y.data(), cols);
                   };
                 }});
}

}  // namespace flywheel::bench
