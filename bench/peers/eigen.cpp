// Eigen: f32. This file is compiled for the CPU that it is built on, because Eigen has no choice at run time.
#include <Eigen/Core>
#include <memory>

#include "bench/peers/peers.hpp"

namespace flywheel::bench {
namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
struct product {
  matrix x, w, y;
};

}  // namespace

void add_eigen(std::vector<peer>& all) {
  all.push_back({"eigen_f32", false, [](int threads, std::int64_t m, std::int64_t n, std::int64_t k) {
                   const auto p = std::make_shared<product>();
                   p->x = matrix::Constant(m, k, 0.5f);
                   p->w = matrix::Constant(n, k, 0.25f);
                   p->y.resize(m, n);
                   return [=]() -> void {
                     Eigen::setNbThreads(threads);
                     p->y.noalias() = p->x * p->w.transpose();
                   };
                 }});
}

}  // namespace flywheel::bench
