#include "src/measure/random_weights.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/formats/half.hpp"

namespace flywheel::inline v0::measure {
namespace {

/// Where a block holds its f16 scales (a row of a dtype of kind row its f32 scale), and the standard deviation of what
/// random bits decode to with scales of 1. `offset` (where it exists) is set to minus `centre` times the scale, so that
/// values have mean 0.
struct block_recipe {
  dtype type;
  std::size_t scale;
  std::ptrdiff_t offset;  ///< -1: none.
  float deviation, centre;
};
constexpr block_recipe recipes[] = {
    {dtype::q4_0, 0, -1, 4.6F, 0},       {dtype::q4_1, 0, 2, 4.6F, 7.5F},  {dtype::q5_0, 0, -1, 9.2F, 0},
    {dtype::q5_1, 0, 2, 9.2F, 15.5F},    {dtype::q8_0, 0, -1, 74, 0},      {dtype::q2_k, 80, 82, 13, -1.5F},
    {dtype::q3_k, 108, -1, 42, 0},       {dtype::q4_k, 0, 2, 260, -7.5F},  {dtype::q5_k, 0, 2, 520, -15.5F},
    {dtype::q6_k, 208, -1, 1370, 0},     {dtype::iq4_nl, 0, -1, 70, 0},    {dtype::iq4_xs, 0, -1, 1290, 0},
    {dtype::q8_g128, 0, -1, 74, 0},      {dtype::q4_g128, 0, -1, 4.6F, 0}, {dtype::q8_channel, 0, -1, 74, 0},
    {dtype::q4_channel, 0, -1, 4.6F, 0}, {dtype::iq2_xxs, 0, -1, 53, 0},   {dtype::iq2_xs, 0, -1, 56, 0},
    {dtype::iq2_s, 0, -1, 56, 0},        {dtype::iq3_xxs, 0, -1, 142, 0},  {dtype::iq3_s, 0, -1, 140, 0},
    {dtype::iq1_s, 0, -1, 7.2F, 0},      {dtype::iq1_m, 48, -1, 7.2F, 0},
};

const block_recipe* recipe_of(dtype type) noexcept {
  for (const block_recipe& r : recipes)
    if (r.type == type) return &r;
  return nullptr;
}

void fill_bits(random_bits& random, std::span<std::byte> out) {
  std::size_t i = 0;
  for (; i + 8 <= out.size(); i += 8) {
    const std::uint64_t bits = random.next();
    std::memcpy(out.data() + i, &bits, 8);
  }
  for (; i < out.size(); ++i) out[i] = static_cast<std::byte>(random.next());
}

}  // namespace

bool can_make_rows(dtype type) noexcept { return recipe_of(type) != nullptr || formats::find_encoder(type) != nullptr; }

void fill_random_rows(random_bits& random, dtype type, std::int64_t cols, float deviation, std::span<std::byte> out) {
  const dtype_info& facts = *info(type);
  if (const block_recipe* r = recipe_of(type)) {
    fill_bits(random, out);
    if (type == dtype::q8_channel || type == dtype::q8_g128)  // symmetric: -127..127
      std::replace(out.begin(), out.end(), std::byte{0x80}, std::byte{0x81});
    if (facts.kind == dtype_kind::row) {
      const float scale = deviation / r->deviation;
      for (std::size_t at = 0; at < out.size(); at += row_bytes(type, cols))
        std::memcpy(out.data() + at + r->scale, &scale, sizeof scale);
      return;
    }
    const std::uint16_t scale = formats::f32_to_f16(deviation / r->deviation);
    const std::uint16_t offset = formats::f32_to_f16(-r->centre * deviation / r->deviation);
    for (std::size_t at = 0; at < out.size(); at += facts.block_bytes) {
      if (type == dtype::iq1_m) {  // a nibble of the scale above each of four words
        for (std::size_t i = 0; i < 4; ++i) {
          std::byte& high = out[at + r->scale + 2 * i + 1];
          high = (high & std::byte{15}) | static_cast<std::byte>((scale >> (4 * i)) << 4);
        }
        continue;
      }
      std::memcpy(out.data() + at + r->scale, &scale, sizeof scale);
      if (r->offset >= 0) std::memcpy(out.data() + at + static_cast<std::size_t>(r->offset), &offset, sizeof offset);
    }
    return;
  }
  const formats::encode_fn encode = formats::find_encoder(type);
  if (encode == nullptr) {
    std::memset(out.data(), 0, out.size());
    return;
  }
  const std::size_t count = out.size() / facts.block_bytes * facts.block_elements;
  std::vector<float> values(count);
  for (float& v : values) v = random.number() * deviation;
  encode(values.data(), static_cast<std::int64_t>(count), out.data());
}

}  // namespace flywheel::inline v0::measure
