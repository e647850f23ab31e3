// oneDNN: u8 and s8 activations by s8 weights, and f32. The weights are laid out as the primitive wants them.
#include <omp.h>

#include <cstring>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "bench/peers/peers.hpp"

namespace flywheel::bench {
namespace {

using dnnl::memory;

struct product {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul primitive;
  std::unordered_map<int, memory> arguments;
};

memory filled(const memory::desc& shape, const dnnl::engine& engine) {
  memory made(shape, engine);
  std::memset(made.get_data_handle(), 0, shape.get_size());
  return made;
}

std::function<void()> make(int threads, std::int64_t m, std::int64_t n, std::int64_t k, memory::data_type x,
                           memory::data_type w, memory::data_type y) {
  omp_set_num_threads(threads);  // the primitive is made for so many
  const auto p = std::make_shared<product>();
  const memory::desc xs({m, k}, x, memory::format_tag::ab), ws({k, n}, w, memory::format_tag::any),
      ys({m, n}, y, memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc plan(p->engine, xs, ws, ys);
#else
  const dnnl::matmul::primitive_desc plan(dnnl::matmul::desc(xs, ws, ys), p->engine);
#endif
  p->primitive = dnnl::matmul(plan);
  p->arguments = {{DNNL_ARG_SRC, filled(plan.src_desc(), p->engine)},
                  {DNNL_ARG_WEIGHTS, filled(plan.weights_desc(), p->engine)},
                  {DNNL_ARG_DST, filled(plan.dst_desc(), p->engine)}};
  return [p, threads] {
    omp_set_num_threads(threads);
    p->primitive.execute(p->stream, p->arguments);
    p->stream.wait();
  };
}

}  // namespace

void add_onednn(std::vector<peer>& all) {
  using type = memory::data_type;
  const auto add = [&](const char* name, bool int8, type x, type w, type y) {
    all.push_back({name, int8, [=](int threads, std::int64_t m, std::int64_t n, std::int64_t k) {
                     return make(threads, m, n, k, x, w, y);
                   }});
  };
  add("onednn_u8s8_f32", true, type::u8, type::s8, type::f32);
  add("onednn_s8s8_s32", true, type::s8, type::s8, type::s32);
  add("onednn_f32", false, type::f32, type::f32, type::f32);
}

}  // namespace flywheel::bench
