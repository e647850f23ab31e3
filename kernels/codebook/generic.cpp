#include "kernels/declare.hpp"
#include "kernels/scalar_math.hpp"

namespace flywheel::inline v0::kernels {

void codebook_terms_generic(const std::int8_t* levels, std::int64_t points, int dims, const float* v, const float* w,
                            std::int64_t groups, float* linear, float* square, float* flipped) {
  for (std::int64_t g = 0; g < groups; ++g, v += dims, w += dims)
    for (std::int64_t p = 0; p < points; ++p) {
      float first = 0, second = 0, largest = -__builtin_inff();
      for (int i = 0; i < dims; ++i) {
        const float level = levels[i * points + p];
        first = multiply_add(v[i], level, first);
        second = multiply_add(w[i], level * level, second);
        largest = v[i] * level > largest ? v[i] * level : largest;
      }
      linear[g * points + p] = first;
      square[g * points + p] = second;
      if (flipped != nullptr) flipped[g * points + p] = multiply_add(-2, largest, first);
    }
}

void codebook_least_generic(const float* linear, const float* square, std::int64_t points, const float* scales,
                            int count, float* least) {
  for (int k = 0; k < count; ++k) {
    float low = __builtin_inff();
    for (std::int64_t p = 0; p < points; ++p) {
      const float here = multiply_add(scales[k], square[p], linear[p]);
      low = here < low ? here : low;
    }
    least[k] = low;
  }
}

std::int64_t codebook_nearest_generic(const float* linear, const float* square, std::int64_t points, float scale) {
  std::int64_t best = 0;
  float low = __builtin_inff();
  for (std::int64_t p = 0; p < points; ++p) {
    const float here = multiply_add(scale, square[p], linear[p]);
    if (here < low) {
      low = here;
      best = p;
    }
  }
  return best;
}

void ternary_least_generic(const ternary_book& book, const float* v, const float* w, const float* scales, int count,
                           float* runs, float* least) {
  for (int column = 0; column < 16; ++column) {
    const int k = column % 8 < count ? column % 8 : count - 1;
    const float unit = column < 8 ? 1 : -1;
    float sums[2][81];
    for (int half = 0; half < 2; ++half)
      for (int number = 0; number < 81; ++number) {
        float sum = 0;
        for (int i = 0, rest = number; i < 4; ++i, rest /= 3) {
          const float m = scales[k] * (static_cast<float>(8 * (rest % 3) - 8) + unit);
          sum += m * multiply_add(w[4 * half + i], m, v[4 * half + i]);
        }
        sums[half][number] = sum;
      }
    least[column] = __builtin_inff();
    for (int h = 0; h < 81; ++h) {
      float low = __builtin_inff();
      for (int p = book.first[h]; p < book.first[h + 1]; ++p) {
        const float here = sums[0][book.low[p] / 16];
        low = here < low ? here : low;
      }
      runs[16 * h + column] = low + sums[1][h];
      least[column] = runs[16 * h + column] < least[column] ? runs[16 * h + column] : least[column];
    }
  }
}

}  // namespace flywheel::inline v0::kernels
