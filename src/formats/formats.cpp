#include "flywheel/formats/formats.hpp"

#include <string>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/codec.hpp"
#include "flywheel/formats/formats.inc"

namespace flywheel::inline v0::formats {
namespace {

// A format is known when its codec is a complete type, that is, when formats.inc names its header.
template <dtype Type>
constexpr decode_fn decoder_of() noexcept {
  if constexpr (requires { sizeof(codec<Type>); })
    return &decode_blocks<Type>;
  else
    return nullptr;
}

template <dtype Type>
constexpr encode_fn encoder_of() noexcept {
  if constexpr (requires { &codec<Type>::encode; } || requires { &codec<Type>::encode_row; })
    return &encode_blocks<Type>;
  else
    return nullptr;
}

}  // namespace

decode_fn find_decoder(dtype type) noexcept {
  switch (type) {
#define FLYWHEEL_DTYPE(name, id, display, elements, bytes, kind) \
  case dtype::name:                                              \
    return decoder_of<dtype::name>();
#include "flywheel/core/dtypes.inc"
#undef FLYWHEEL_DTYPE
  }
  return nullptr;
}

encode_fn find_encoder(dtype type) noexcept {
  switch (type) {
#define FLYWHEEL_DTYPE(name, id, display, elements, bytes, kind) \
  case dtype::name:                                              \
    return encoder_of<dtype::name>();
#include "flywheel/core/dtypes.inc"
#undef FLYWHEEL_DTYPE
  }
  return nullptr;
}

result<void> decode(const tensor_view& tensor, std::span<float> out) {
  return detail::guarded([&]() -> result<void> {
    const dtype_info* facts = info(tensor.type);
    if (facts == nullptr)
      return error{
          errc::unsupported, "unsupported tensor type " + std::to_string(static_cast<std::uint32_t>(tensor.type)), {}};
    const decode_fn decoder = find_decoder(tensor.type);
    if (decoder == nullptr)
      return error{
          errc::unsupported, "unsupported tensor type " + std::string(facts->name) + ": it has no decoder", {}};
    if (tensor.dims.cols() % facts->block_elements != 0 || !tensor.dense())
      return error{errc::invalid_argument, "only dense tensors with whole blocks can be decoded", {}};
    if (static_cast<std::uint64_t>(tensor.dims.elements()) != out.size())
      return error{errc::invalid_argument,
                   "the tensor has " + std::to_string(tensor.dims.elements()) + " elements, the output room for " +
                       std::to_string(out.size()),
                   {}};
    if (facts->kind != dtype_kind::row) {
      decoder(tensor.data, tensor.dims.elements(), out.data());
      return {};
    }
    const std::int64_t cols = tensor.dims.cols();
    for (std::int64_t r = 0; r < tensor.dims.rows(); ++r) decoder(tensor.row(r), cols, out.data() + r * cols);
    return {};
  });
}

}  // namespace flywheel::inline v0::formats
