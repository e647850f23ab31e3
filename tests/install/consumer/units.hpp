// What one translation unit believes about the public types.
#pragma once
#include <array>
#include <cstddef>
#include <typeinfo>

#include "flywheel/flywheel.hpp"

struct unit_facts {
  std::array<std::size_t, 10> sizes;
  const std::type_info* thrown;
  const flywheel::dtype_info* q8;
  const void* version;
};
unit_facts unit_one();
unit_facts unit_two();
flywheel::result<flywheel::shape> make_shape();

static inline unit_facts facts_here() {
  using namespace flywheel;
  return {{sizeof(model), sizeof(session), sizeof(session_options), sizeof(generate_options), sizeof(sampler),
           sizeof(context_options), sizeof(error), sizeof(tensor), sizeof(shape), sizeof(io::tensor_info)},
          &typeid(bad_result),
          find_dtype("q8_0"),
          version.data()};
}
