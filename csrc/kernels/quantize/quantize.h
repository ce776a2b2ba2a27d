// Contract of the weight quantisation kernels: what packing does to one row of a weight, or to one group of it.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/element.h"

namespace torch_cpullm::kernels {

// value = (code - zero) * scale, lowest <= code <= highest. scale may be negative, and 0 where all values are.
struct Grid {
  float scale, zero, lowest, highest;
};
// Both NaN where any value is not finite.
struct Extremes {
  float lowest, highest;
};

struct QuantizeKernels {
  void (*widen)(layout::ConstElements x, int64_t n, float* out);
  Extremes (*extremes)(const float* x, int64_t n);
  // codes = clamp(round(x / scale + zero)), ties to even; the code of zero where scale is 0 or NaN.
  void (*encode)(const float* x, int64_t n, const Grid& grid, int8_t* codes);
  // Sum of (x - value of its code)^2.
  float (*error)(const float* x, int64_t n, const Grid& grid);
};

const QuantizeKernels& quantize_kernels();

namespace scalar {
extern const QuantizeKernels quantize;
}
namespace avx2 {
extern const QuantizeKernels quantize;
}
namespace avx512 {
extern const QuantizeKernels quantize;
}

}  // namespace torch_cpullm::kernels
