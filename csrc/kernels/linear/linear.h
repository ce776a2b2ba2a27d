// Contract of the linear kernels: a tile of rows x 64 columns, C += A * W over a run of steps of one panel.
//
//   c[r][n] += sum over k of a[r][k] * weight[n][k]          r < rows <= tile rows, n < 64
//
// f32, bf16: one chain of fused multiply-adds per output, in k order: c may leave and re-enter at any step border
//            without changing a bit (except avx512bf16, whose instruction adds a pair per step).
// int8:      exact int32 inside a group, then c = fma(scale[r][group], sum, c), in group order. With weights stored as
//            code + 128 the true sum is  sum(u8 * s8) - 128 * sum(s8); the accumulator starts at -128 * act_sum
//            (at 0 in the avx2 kernel, which has no unsigned product and takes the 128 off each weight instead).
//            No overflow: 256 * 255 * 127 < 2^23.
//
// `act` holds per row: f32 values, bf16 values padded to a pair, or s8 codes padded to four, zeros in the padding.
// The panel must have `steps` steps of 256 bytes (layout/panel.h). Kernels never read outside these.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/panel.h"

namespace torch_cpullm::kernels {

struct LinearTile {
  const uint8_t* act;
  int64_t act_stride;      // bytes from row to row
  const float* act_scale;  // int8 only: [rows][group_stride], first entry belongs to the first step
  const int32_t* act_sum;  // int8 only: sum of codes, same shape
  int64_t group_stride;    // elements from row to row
  const uint8_t* weight;
  int64_t steps;
  float* c;
  int64_t c_stride;  // elements from row to row
  int rows;
};

using LinearFn = void (*)(const LinearTile&);

struct LinearKernel {
  LinearFn fn;
  int tile_rows;
};

// The kernel for a packed format on this machine. Selection happens once per op, outside all loops.
LinearKernel linear_kernel(layout::Format format);

constexpr int64_t kStepsPerGroup = layout::kActivationGroup / 4;

// One table per format; defined in linear.cpp from what the ISA files export.
namespace scalar {
extern const LinearKernel linear_f32, linear_bf16, linear_s8;
}
namespace avx2 {
extern const LinearKernel linear_f32, linear_bf16, linear_s8;
}
namespace avxvnni {
extern const LinearKernel linear_s8;
}
namespace avx512 {
extern const LinearKernel linear_f32, linear_bf16;
}
namespace avx512bf16 {
extern const LinearKernel linear_bf16;
}
namespace avx512vnni {
extern const LinearKernel linear_s8;
}

}  // namespace torch_cpullm::kernels
