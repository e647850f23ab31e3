// Low-rank products against their definition, and the promise that no number depends on its neighbours.
#include "kernels/low_rank/low_rank.hpp"

#include <algorithm>

#include "kernel_test.hpp"
#include "kernels/low_rank/reference.hpp"
#include "tolerances.hpp"

using namespace flywheel;
using namespace flywheel::kernels;
using namespace flywheel::test;

namespace {

constexpr dtype low_rank_types[] = {dtype::f32, dtype::f16, dtype::bf16};

/// Numbers that the type can say, and their bytes.
struct factor_row {
  std::vector<float> values;
  std::vector<std::byte> bytes;
};
factor_row random_factor(dtype type, std::size_t n, random_source& random) {
  factor_row out{std::vector<float>(n), random_row(type, static_cast<std::int64_t>(n), random)};
  find_to_f32(cluster::generic, type)(out.bytes.data(), static_cast<std::int64_t>(n), out.values.data());
  return out;
}

/// Bytes that end exactly where the kernels' contract says, for tools that find reads behind them.
struct packed_factors {
  std::vector<std::vector<float>> a, b;  ///< [rank][k], [n][rank]
  std::vector<std::byte> a_bytes, b_bytes;

  packed_factors(dtype type, std::int64_t rank, std::int64_t k, std::int64_t n, random_source& random) {
    const std::size_t stride = low_rank_stride(type, k), size = low_rank_size(type);
    a_bytes.resize(static_cast<std::size_t>(rank) * stride);
    for (std::int64_t j = 0; j < rank; ++j) {
      factor_row row = random_factor(type, static_cast<std::size_t>(k), random);
      std::copy(row.bytes.begin(), row.bytes.end(),
                a_bytes.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(j) * stride));
      a.push_back(std::move(row.values));
    }
    const std::int64_t blocks = (n + low_rank_block - 1) / low_rank_block;
    b_bytes.resize(static_cast<std::size_t>(blocks * rank * low_rank_block) * size + 64);
    for (std::int64_t c = 0; c < n; ++c) {
      factor_row row = random_factor(type, static_cast<std::size_t>(rank), random);
      for (std::int64_t j = 0; j < rank; ++j) {
        const std::int64_t at = (c / low_rank_block * rank + j) * low_rank_block + c % low_rank_block;
        std::memcpy(b_bytes.data() + static_cast<std::size_t>(at) * size,
                    row.bytes.data() + static_cast<std::size_t>(j) * size, size);
      }
      b.push_back(std::move(row.values));
    }
  }
};

}  // namespace

TEST_CASE("projections follow their definition on every cluster", "[kernels][low_rank]") {
  random_source random(3);
  for (const dtype type : low_rank_types)
    for (const auto& [rank, k, rows] :
         {std::tuple{1, 5, 1}, {8, 64, 1}, {8, 100, 7}, {11, 257, 3}, {16, 96, 4}, {3, 2048, 2}}) {
      CAPTURE(to_string(type), rank, k, rows);
      const packed_factors f(type, rank, k, 1, random);
      const std::int64_t x_stride = k + 3, u_stride = rank + 2;
      const auto x = random.numbers(static_cast<std::size_t>(rows * x_stride));
      for (const cluster isa : runnable_clusters()) {
        CAPTURE(name_of(isa));
        std::vector<float> u(static_cast<std::size_t>(rows * u_stride), -7.0F);
        project_args args;
        args.type = type;
        args.a = f.a_bytes.data();
        args.ranks = rank;
        args.k = k;
        args.x = x.data();
        args.x_stride = x_stride;
        args.rows = rows;
        args.scale = 1.5F;
        args.u = u.data();
        args.u_stride = u_stride;
        select(isa).project(args);
        bool alone_equal = true, untouched = true;
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t j = 0; j < rank; ++j) {
            const float* row = x.data() + r * x_stride;
            double magnitude = 0;
            for (std::int64_t i = 0; i < k; ++i)
              magnitude +=
                  std::fabs(static_cast<double>(f.a[static_cast<std::size_t>(j)][static_cast<std::size_t>(i)]) *
                            static_cast<double>(row[i]));
            const float got = u[static_cast<std::size_t>(r * u_stride + j)];
            const double want = reference::project(f.a[static_cast<std::size_t>(j)].data(), row, 1.5, k);
            CHECK(std::fabs(static_cast<double>(got) - want) <= tolerance::matmul_f32 * 1.5 * magnitude);
            // One number alone has the same bits.
            float one = 0;
            project_args alone = args;
            alone.a += static_cast<std::size_t>(j) * low_rank_stride(type, k);
            alone.ranks = alone.rows = 1;
            alone.x = row;
            alone.u = &one;
            select(isa).project(alone);
            alone_equal = alone_equal && one == got;
          }
          for (std::int64_t j = rank; j < u_stride; ++j)
            untouched = untouched && u[static_cast<std::size_t>(r * u_stride + j)] == -7.0F;
        }
        CHECK(alone_equal);
        CHECK(untouched);
      }
    }
}

TEST_CASE("expansions follow their definition on every cluster", "[kernels][low_rank]") {
  random_source random(4);
  for (const dtype type : low_rank_types)
    for (const auto& [rank, n, rows] : {std::tuple{1, 1, 1}, {8, 64, 1}, {8, 70, 5}, {11, 45, 3}, {19, 33, 2}}) {
      CAPTURE(to_string(type), rank, n, rows);
      const packed_factors f(type, rank, 1, n, random);
      const std::int64_t y_stride = n + 1, u_stride = rank + 2;
      const auto before = random.numbers(static_cast<std::size_t>(rows * y_stride));
      const auto u = random.numbers(static_cast<std::size_t>(rows * u_stride));
      for (const cluster isa : runnable_clusters()) {
        CAPTURE(name_of(isa));
        expand_args args;
        args.type = type;
        args.b = f.b_bytes.data();
        args.rank = rank;
        args.u = u.data();
        args.u_stride = u_stride;
        args.rows = rows;
        args.end = n;
        args.y_stride = y_stride;
        std::vector<float> whole = before, cut = before;
        args.y = whole.data();
        select(isa).expand(args);
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t c = 0; c < n; ++c) {
            const auto at = static_cast<std::size_t>(r * y_stride + c);
            const float* b = f.b[static_cast<std::size_t>(c)].data();
            double magnitude = std::fabs(static_cast<double>(before[at]));
            for (std::int64_t j = 0; j < rank; ++j)
              magnitude += std::fabs(static_cast<double>(b[j]) *
                                     static_cast<double>(u[static_cast<std::size_t>(r * u_stride + j)]));
            const double want = reference::expand(static_cast<double>(before[at]), b, u.data() + r * u_stride, rank);
            CHECK(std::fabs(static_cast<double>(whole[at]) - want) <= tolerance::matmul_f32 * magnitude);
          }
        // Any cut of rows and columns gives the same bits, and touches nothing else.
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t c = 0; c < n;) {
            expand_args part = args;
            part.u += r * u_stride;
            part.rows = 1;
            part.begin = c;
            part.end = std::min<std::int64_t>(n, c + 1 + random.below(23));
            part.y = cut.data() + r * y_stride + c;
            select(isa).expand(part);
            c = part.end;
          }
        CHECK(cut == whole);
        for (std::int64_t r = 0; r < rows; ++r)
          CHECK(whole[static_cast<std::size_t>(r * y_stride + n)] ==
                before[static_cast<std::size_t>(r * y_stride + n)]);
      }
    }
}
