// Codecs without shared data: blocks worked out by hand, encoders' errors, and what no input may do.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "flywheel/formats/formats.hpp"
#include "flywheel/formats/half.hpp"
#include "support/catch.hpp"
#include "support/tiny_model.hpp"

namespace fw = flywheel;
using fw::dtype;
using fw::errc;

namespace {

std::vector<float> decode(dtype type, const std::vector<int>& bytes) {
  const fw::dtype_info& facts = *fw::info(type);
  REQUIRE(bytes.size() % facts.block_bytes == 0);
  std::vector<std::byte> data;
  for (const int b : bytes) data.push_back(static_cast<std::byte>(b));
  std::vector<float> out(bytes.size() / facts.block_bytes * facts.block_elements);
  const auto decoder = fw::formats::find_decoder(type);
  REQUIRE(decoder != nullptr);
  decoder(data.data(), static_cast<std::int64_t>(out.size()), out.data());
  return out;
}

/// A block of zeros of `type` with some bytes set.
struct patch {
  int at, value;
};
std::vector<int> block(dtype type, std::initializer_list<patch> patches) {
  std::vector<int> bytes(fw::info(type)->block_bytes);
  for (const patch p : patches) bytes[static_cast<std::size_t>(p.at)] = p.value;
  return bytes;
}

}  // namespace

TEST_CASE("plain numbers decode", "[formats]") {
  CHECK(decode(dtype::f32, {0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0}) == std::vector<float>{1, -2});
  CHECK(decode(dtype::f64, {0, 0, 0, 0, 0, 0, 0xF8, 0xBF}) == std::vector<float>{-1.5});
  CHECK(decode(dtype::f16, {0x00, 0x3C, 0x01, 0x00}) == std::vector<float>{1, 0x1p-24F});
  CHECK(decode(dtype::bf16, {0x80, 0x3F, 0x00, 0xC0}) == std::vector<float>{1, -2});
  CHECK(decode(dtype::i8, {0x80, 0x7F}) == std::vector<float>{-128, 127});
  CHECK(decode(dtype::u8, {0x80, 0x7F}) == std::vector<float>{128, 127});
  CHECK(decode(dtype::i16, {0xFE, 0xFF}) == std::vector<float>{-2});
  CHECK(decode(dtype::u16, {0xFE, 0xFF}) == std::vector<float>{65534});
  CHECK(decode(dtype::i32, {0, 0, 0, 0x80}) == std::vector<float>{-0x1p31F});
  CHECK(decode(dtype::u32, {0, 0, 0, 0x80}) == std::vector<float>{0x1p31F});
  CHECK(decode(dtype::i64, {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}) == std::vector<float>{-1});
  CHECK(decode(dtype::u64, {0, 0, 0, 0, 0, 0, 0, 0x80}) == std::vector<float>{0x1p63F});
  CHECK(decode(dtype::boolean, {0, 1}) == std::vector<float>{0, 1});
  CHECK(decode(dtype::f8_e4m3, {0x38, 0xB8, 0x01, 0x08, 0x7E, 0}) ==
        std::vector<float>{1, -1, 0x1p-9F, 0x1p-6F, 448, 0});
  CHECK(std::isnan(decode(dtype::f8_e4m3, {0xFF})[0]));
  CHECK(decode(dtype::f8_e5m2, {0x3C, 0xBC, 0x01, 0x7B}) == std::vector<float>{1, -1, 0x1p-16F, 57344});
  CHECK(std::isinf(decode(dtype::f8_e5m2, {0x7C})[0]));
}

TEST_CASE("blocks decode where the layout puts each value", "[formats]") {
  // 0x3C00 is 1 and 0x4000 is 2 in f16.
  auto out = decode(dtype::q8_0, block(dtype::q8_0, {{1, 0x40}, {2, 0x81}, {33, 3}}));
  CHECK((out[0] == -254 && out[31] == 6 && out[1] == 0));
  out = decode(dtype::q4_0, block(dtype::q4_0, {{1, 0x3C}, {2, 0xF1}}));
  CHECK((out[0] == -7 && out[16] == 7 && out[1] == -8));
  out = decode(dtype::q4_1, block(dtype::q4_1, {{1, 0x3C}, {3, 0xC0}, {4, 0xF1}}));
  CHECK((out[0] == -1 && out[16] == 13 && out[1] == -2));
  out = decode(dtype::q5_0, block(dtype::q5_0, {{1, 0x3C}, {2, 1}, {4, 2}, {6, 0xF1}}));
  CHECK((out[0] == 1 && out[16] == -1 && out[1] == -16 && out[17] == 0));
  out = decode(dtype::q5_1, block(dtype::q5_1, {{1, 0x3C}, {3, 0x3C}, {4, 1}, {6, 2}, {8, 0xF1}}));
  CHECK((out[0] == 18 && out[16] == 16 && out[1] == 1 && out[17] == 17));
  out = decode(dtype::iq4_nl, block(dtype::iq4_nl, {{1, 0x3C}, {2, 0xF8}}));
  CHECK((out[0] == 1 && out[16] == 113 && out[1] == -127));
  out = decode(dtype::mxfp4, block(dtype::mxfp4, {{0, 128}, {1, 0xF7}, {2, 0x91}}));
  CHECK((out[0] == 12 && out[16] == -12 && out[1] == 1 && out[17] == -1 && out[2] == 0));
  out = decode(dtype::mxfp4, block(dtype::mxfp4, {{0, 0}, {1, 0x12}}));
  CHECK((out[0] == 0x1p-127F && out[16] == 0x1p-128F));
  CHECK(decode(dtype::mxfp4, block(dtype::mxfp4, {{0, 1}, {1, 1}}))[0] == 0x1p-127F);
  CHECK(decode(dtype::mxfp4, block(dtype::mxfp4, {{0, 2}, {1, 1}}))[0] == 0x1p-126F);
  out = decode(dtype::nvfp4, block(dtype::nvfp4, {{0, 0x38}, {1, 0x01}, {2, 0x7F}, {4, 0xF1}, {12, 2}, {20, 7}}));
  CHECK((out[0] == 0.5F && out[8] == -6 && out[16] == 0x1p-9F && out[32] == 0));
  out = decode(dtype::q2_k, block(dtype::q2_k, {{0, 0x21}, {2, 0x03}, {16, 0x06}, {81, 0x3C}, {83, 0x3C}}));
  CHECK((out[0] == 0 && out[1] == -2 && out[32] == 3 && out[16] == 0));  // 1*2-2, 1*0-2, 3*1-0
  out = decode(dtype::q3_k, block(dtype::q3_k, {{0, 0x01}, {32, 0x07}, {96, 0x01}, {104, 0x02}, {109, 0x3C}}));
  // Scale 0 is 1 | 2 << 4 = 33, so 1 after 32 is taken away; scale 2 is 0 - 32; q: 3 + 4 - 4, and 1 - 4.
  CHECK((out[0] == 3 && out[1] == -4 && out[32] == 96));
  out = decode(dtype::q4_k,
               block(dtype::q4_k, {{1, 0x3C}, {3, 0x3C}, {4, 0x42}, {8, 0x81}, {12, 0x53}, {16, 0xE5}, {80, 0x02}}));
  // Scale 0: 2, minimum 0: 1; scale 4: 3 | 1 << 4 = 19, minimum 4: 5 | 2 << 4 = 37.
  CHECK((out[0] == 9 && out[1] == -1 && out[32] == 0 && out[128] == 1));
  out = decode(dtype::q5_k, block(dtype::q5_k, {{1, 0x3C}, {3, 0x3C}, {4, 2}, {5, 1}, {8, 1}, {16, 0x02}, {48, 0xE5}}));
  CHECK((out[0] == 9 && out[1] == -1 && out[32] == 30));
  out = decode(
      dtype::q6_k,
      block(dtype::q6_k, {{0, 0x21}, {32, 0x43}, {128, 0xE4}, {192, 1}, {194, 2}, {196, 0xFF}, {198, 3}, {209, 0x3C}}));
  CHECK(
      (out[0] == 1 - 32 && out[32] == 2 * (3 + 16 - 32) && out[64] == -(2 + 32 - 32) && out[96] == 3 * (4 + 48 - 32)));
  out = decode(dtype::iq4_xs, block(dtype::iq4_xs, {{1, 0x3C}, {2, 0x02}, {4, 0x01}, {8, 0xF8}}));
  CHECK((out[0] == 1 && out[16] == 113 && out[32] == -32 * -127));  // scale 33 - 32, then 0 - 32
  out = decode(dtype::tq1_0, block(dtype::tq1_0, {{0, 255}, {1, 129}, {48, 86}, {53, 0x3C}}));
  // 255/256 is 0.22222 in base 3; 129/256 begins 0.1112.
  CHECK((out[0] == 1 && out[32] == 1 && out[128] == 1 && out[1] == 0 && out[33] == 0 && out[2] == -1));
  CHECK((out[240] == 0 && out[244] == -1));  // 86/256 is just over one third
  out = decode(dtype::tq2_0, block(dtype::tq2_0, {{0, 0x42}, {32, 1}, {65, 0x3C}}));
  CHECK((out[0] == 1 && out[32] == -1 && out[96] == 0 && out[128] == 0));
  out = decode(dtype::q1_0, block(dtype::q1_0, {{1, 0x40}, {2, 0x02}, {17, 0x80}}));
  CHECK((out[0] == -2 && out[1] == 2 && out[127] == 2 && out[126] == -2));
  out = decode(dtype::q2_0, block(dtype::q2_0, {{1, 0x3C}, {2, 0x0E}, {17, 0x80}}));
  CHECK((out[0] == 1 && out[1] == 2 && out[2] == -1 && out[63] == 1));
}

TEST_CASE("codebook blocks decode where the layout puts each value", "[formats]") {
  // Every codebook begins with all values on the lowest level; point 1 raises the first value most.
  auto out =
      decode(dtype::iq2_xxs, block(dtype::iq2_xxs, {{1, 0x3C}, {2, 1}, {3, 2}, {6, 0x81}, {7, 0x01}, {9, 0x20}}));
  // Scale (2 * 2 + 1) / 8; signs 1 and 3, to which 1 must add the eighth.
  CHECK((out[0] == -26.875F && out[1] == 5 && out[7] == -5));
  CHECK((out[8] == -15.625F && out[9] == -15.625F && out[10] == 5 && out[15] == 5 && out[255] == 1));
  out = decode(dtype::iq2_xs,
               block(dtype::iq2_xs, {{1, 0x3C}, {2, 1}, {3, 2}, {64, 0xFF}, {65, 0xFF}, {66, 0x02}, {73, 0x10}}));
  CHECK((out[0] == -26.875F && out[1] == 5 && out[7] == -5 && out[16] == 1));
  CHECK((out[248] == -16.125F && out[255] == -16.125F));  // point 511: all 43; seven signs make eight
  out = decode(dtype::iq2_s,
               block(dtype::iq2_s, {{1, 0x3C}, {2, 1}, {33, 255}, {34, 1}, {65, 0x80}, {73, 0xC0}, {81, 0x10}}));
  CHECK((out[0] == -5.375F && out[1] == 1 && out[254] == 16.125F && out[255] == -16.125F));
  out = decode(dtype::iq3_xxs, block(dtype::iq3_xxs, {{1, 0x3C}, {3, 5}, {66, 0x10}, {69, 0x30}}));
  CHECK((out[0] == 7 && out[4] == -108.5F && out[5] == 21 && out[6] == 7 && out[7] == -7 && out[32] == 1));
  out = decode(dtype::iq3_s,
               block(dtype::iq3_s, {{1, 0x3C}, {2, 3}, {65, 255}, {73, 0x80}, {105, 0x80}, {106, 2}, {109, 0x10}}));
  CHECK((out[0] == 55 && out[1] == 5 && out[32] == 1 && out[252] == 3 && out[254] == 45 && out[255] == -45));
  out = decode(dtype::iq1_s, block(dtype::iq1_s, {{1, 0x3C}, {2, 1}, {33, 255}, {35, 0x20}, {49, 0x8E}}));
  CHECK((out[0] == 5.625F && out[1] == -4.375F && out[32] == -0.875F && out[255] == 0.875F && out[247] == -1.125F));
  out = decode(dtype::iq1_m,
               block(dtype::iq1_m, {{0, 1}, {31, 255}, {32, 8}, {47, 0x70}, {48, 2}, {53, 0xC0}, {55, 0x32}}));
  CHECK((out[0] == 4.375F && out[1] == -5.625F && out[8] == -4.375F && out[16] == -0.875F && out[255] == 3.375F));
}

TEST_CASE("encoders stay within the error their step allows", "[formats]") {
  fw::test::tiny_random random(3);
  std::vector<float> x(32 * 200);
  for (float& v : x) v = random.normal();
  struct row {
    dtype type;
    double worst;  ///< Of a value, relative to the block's peak (or range).
    double rms;    ///< Of all values, relative to theirs.
  };
  // Half a step: 1/2 of peak/127, peak/8, range/15 (range <= 2 peaks), ... plus f16 rounding of the scale; on the far
  // side of Q4_0's and Q5_0's asymmetric range a whole step.
  for (const row& r : {row{dtype::f32, 0, 0}, row{dtype::f64, 0, 0}, row{dtype::f16, 0.0005, 0.0003},
                       row{dtype::bf16, 0.004, 0.003}, row{dtype::q8_0, 0.0046, 0.006}, row{dtype::q4_0, 0.126, 0.1},
                       row{dtype::q4_1, 0.0676, 0.09}, row{dtype::q5_0, 0.063, 0.05}, row{dtype::q5_1, 0.0333, 0.045},
                       row{dtype::iq4_nl, 0.12, 0.085}, row{dtype::mxfp4, 0.26, 0.13}}) {
    const fw::dtype_info& facts = *fw::info(r.type);
    const auto encode = fw::formats::find_encoder(r.type);
    INFO(facts.name);
    REQUIRE(encode != nullptr);
    std::vector<std::byte> bytes(x.size() / facts.block_elements * facts.block_bytes);
    encode(x.data(), static_cast<std::int64_t>(x.size()), bytes.data());
    std::vector<float> y(x.size());
    fw::formats::find_decoder(r.type)(bytes.data(), static_cast<std::int64_t>(x.size()), y.data());
    double worst = 0, error = 0, power = 0;
    for (std::size_t b = 0; b < x.size(); b += 32) {
      double peak = 0;
      for (std::size_t i = b; i < b + 32; ++i) peak = std::max(peak, static_cast<double>(std::fabs(x[i])));
      for (std::size_t i = b; i < b + 32; ++i) {
        const double e = static_cast<double>(y[i]) - static_cast<double>(x[i]);
        worst = std::max(worst, std::fabs(e) / peak);
        error += e * e;
        power += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      }
    }
    CHECK(worst <= r.worst);
    CHECK(std::sqrt(error / power) <= r.rms);
    // Zeros stay zeros.
    std::vector<float> zeros(facts.block_elements);
    encode(zeros.data(), facts.block_elements, bytes.data());
    fw::formats::find_decoder(r.type)(bytes.data(), facts.block_elements, y.data());
    for (std::size_t i = 0; i < facts.block_elements; ++i) CHECK(y[i] == 0);
  }
}

TEST_CASE("symmetric formats have one scale per 128 or per row", "[formats]") {
  auto out = decode(dtype::q8_g128, block(dtype::q8_g128, {{1, 0x40}, {2, 0x81}, {129, 3}}));
  CHECK((out[0] == -254 && out[1] == 0 && out[127] == 6));
  out = decode(dtype::q4_g128, block(dtype::q4_g128, {{1, 0x40}, {2, 0xF0}, {65, 0x19}}));
  CHECK((out[0] == -16 && out[64] == 14 && out[63] == 2 && out[127] == -14));

  const auto row = [](dtype type, std::vector<int> bytes) {
    bytes.insert(bytes.begin(), {0, 0, 0, 0x40});  // 2.0f
    std::vector<std::byte> all;
    for (const int b : bytes) all.push_back(static_cast<std::byte>(b));
    std::vector<float> values((all.size() - 4) * fw::info(type)->block_elements);
    fw::formats::find_decoder(type)(all.data(), static_cast<std::int64_t>(values.size()), values.data());
    return values;
  };
  CHECK(row(dtype::q8_channel, {0x81, 5, 0}) == std::vector<float>{-254, 10, 0});
  CHECK(row(dtype::q4_channel, {0x0F, 0x98}) == std::vector<float>{14, -16, 0, 2});

  // Whole tensors: every row has its own scale, and errors are at most half a step of it.
  fw::test::tiny_random random(4);
  for (const dtype type : {dtype::q8_g128, dtype::q4_g128, dtype::q8_channel, dtype::q4_channel}) {
    constexpr std::int64_t rows = 3, cols = 256;
    const bool eight = type == dtype::q8_g128 || type == dtype::q8_channel;
    std::vector<float> x(rows * cols), y(rows * cols);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = random.normal() * (i < cols ? 1.0F : i < 2 * cols ? 100.0F : 0);
    const std::size_t stride = fw::row_bytes(type, cols);
    REQUIRE(fw::dense_bytes(type, {rows, cols}).value() == rows * stride);
    std::vector<std::byte> bytes(rows * stride);
    for (std::size_t r = 0; r < rows; ++r)
      fw::formats::find_encoder(type)(x.data() + r * cols, cols, bytes.data() + r * stride);
    REQUIRE(fw::formats::decode(fw::tensor_view(type, {rows, cols}, bytes.data()), y));
    for (std::size_t r = 0; r < rows; ++r) {
      float peak = 0;
      for (std::size_t i = r * cols; i < (r + 1) * cols; ++i) peak = std::max(peak, std::fabs(x[i]));
      // Half a step and the rounding of an f16 scale; the far end of the four-bit range is a step away.
      const float allowed = peak * (eight ? 0.00442F : 0.1256F);
      for (std::size_t i = r * cols; i < (r + 1) * cols; ++i) CHECK(std::fabs(x[i] - y[i]) <= allowed);
    }
  }
}

TEST_CASE("no bytes and no values are too strange for a codec", "[formats]") {
  // Exact, unaligned heap blocks: sanitizers see any access outside.
  fw::test::tiny_random random(5);
  int decoders = 0;
  for (const fw::dtype_info& facts : fw::dtype_table) {
    INFO(facts.name);
    const auto decode = fw::formats::find_decoder(facts.type);
    if (decode == nullptr) continue;
    ++decoders;
    const std::size_t n = facts.header_bytes() + facts.block_bytes * 3;
    const std::unique_ptr<std::byte[]> bytes(new std::byte[n + 1]);
    const std::unique_ptr<float[]> out(new float[facts.block_elements * 3]);
    for (int round = 0; round < 200; ++round) {
      for (std::size_t i = 1; i <= n; ++i)
        bytes[i] = static_cast<std::byte>(round == 0 ? 255 : static_cast<int>(random.uniform() * 256));
      decode(bytes.get() + 1, facts.block_elements * 3, out.get());
    }
    const auto encode = fw::formats::find_encoder(facts.type);
    if (encode == nullptr) continue;
    constexpr float inf = std::numeric_limits<float>::infinity();
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    const float strange[] = {0, -0.0F, inf, -inf, nan, 3e38F, -3e38F, 1e-45F, -1e-45F, 1e-38F, 1, 65520};
    const std::unique_ptr<float[]> x(new float[facts.block_elements * 3]);
    for (int round = 0; round < 400; ++round) {
      for (std::size_t i = 0; i < facts.block_elements * 3; ++i)
        x[i] = strange[static_cast<std::size_t>(random.uniform() * (round % 2 == 0 ? 12 : 4))];
      encode(x.get(), facts.block_elements * 3, bytes.get() + 1);
      decode(bytes.get() + 1, facts.block_elements * 3, out.get());
    }
  }
  CHECK(decoders >= 44);
}

TEST_CASE("decode says what it cannot do", "[formats]") {
  std::vector<std::byte> bytes(64);
  std::vector<float> out(32);
  const auto tensor = [&](dtype type, const fw::shape& dims) { return fw::tensor_view(type, dims, bytes.data()); };
  REQUIRE(fw::formats::decode(tensor(dtype::q4_0, {32}), out));
  CHECK(fw::formats::decode(tensor(dtype::q4_0, {1, 64}), out).error().code == errc::invalid_argument);
  CHECK(fw::formats::decode(tensor(dtype::q4_0, {2, 16}), out).error().code == errc::invalid_argument);
  auto strided = tensor(dtype::f32, {2, 4});
  strided.strides[0] = 32;
  CHECK(fw::formats::decode(strided, std::span(out).first(8)).error().code == errc::invalid_argument);
  const auto unknown = fw::formats::decode(tensor(static_cast<dtype>(555), {32}), out);
  REQUIRE_FALSE(unknown);
  CHECK(unknown.error().code == errc::unsupported);
  CHECK(unknown.error().message == "unsupported tensor type 555");
  CHECK(fw::formats::find_decoder(static_cast<dtype>(555)) == nullptr);
  CHECK(fw::formats::find_encoder(dtype::q4_k) == nullptr);
}
