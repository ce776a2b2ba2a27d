// Contract of the linear kernels. One call: rows x one panel of 64 columns, over all of K or a run of whole blocks.
//
//   c[r][n] += sum over k of a[r][k] * weight[n][k]          r < rows, n < 64; weights without their column scale
//
// f32, bf16: one chain of fused multiply-adds per output, in k order: c may leave and re-enter at any block border
//            without changing a bit (except avx512bf16, whose instruction adds a pair per step, and amx: 16 pairs).
// int8:      exact int32 inside a block, then c = fma(act_scale[block][r], sum, c), in block order. With weights stored
//            as code + 128 the true sum is  sum(u8 * s8) - 128 * sum(s8); the accumulator starts at -128 * act_sum
//            (at 0 in the avx2 kernel, which has no unsigned product and takes the 128 off each weight instead).
//            No overflow: 256 * 255 * 127 < 2^23.
// grouped:   exact int32 inside a weight group, part = fma(group scale, sum, part) in group order, and at the end of a
//            block c = fma(act_scale, part, c). Asymmetric int4 starts a group at -zero * act_sum.
// two-level: (symmetric int4) S = sum over the block of a * code * multiplier, in int32 or as float: exact, because
//            |S| <= 256 * 120 * 127 < 2^24. Then c = fma(act_scale, S * step, c), in block order. A group's sum starts
//            at -8 * act_sum, that of a block of bytes (code * multiplier + 128) at -128 times the block's.
//
// Activations lie in blocks as the weights do, 256 bytes a row: f32 values, bf16 values, or s8 codes, zeros beyond K.
// Behind the last row of the last block there are kRowsBehind more that may be read, whatever they hold. Else nothing
// is read outside the operands; kernels prefetch kAhead bytes further, which reads nothing.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/element.h"
#include "layout/panel.h"

namespace torch_cpullm::kernels {

constexpr int64_t kRowsBehind = 15;

struct LinearPanel {
  const uint8_t* act;      // [blocks][rows in all][256]
  const float* act_scale;  // read for int8 only: [blocks][rows in all]
  const int32_t*
      act_sum;  // read for int8 only: [blocks][rows in all][sums], minus codes' sums of a weight group (or the block)
  int64_t act_rows;       // rows in all: the distance of two blocks
  const uint8_t* weight;  // the first block
  layout::WeightFormat format;
  int64_t padded;  // k, in whole lines and groups
  float* c;        // [rows][64]
  int64_t rows;
};
using LinearFn = void (*)(const LinearPanel&);

// The kernel for a format with int8 or equal activations. Selection happens once per op, outside all loops.
LinearFn linear_kernel(const layout::WeightFormat& format);

// How a product with many rows should be cut.
struct LinearBlocking {
  int64_t rows;    // of a call, at most: whole tiles
  bool cut_depth;  // a call may get a run of blocks: what it reads of the rows should stay in half of L2
};
LinearBlocking linear_blocking(const layout::WeightFormat& format);

// Rounds one block of a quantised weight to bf16: out holds the same k as blocks of the bf16 layout, 16 KiB each. The
// value is code * group scale (just the code, exactly, without groups; with two levels the scale is step * multiplier,
// which is exact); the column scale stays outside.
using ExpandFn = void (*)(const uint8_t* block, const layout::WeightFormat& format, int64_t depth, uint8_t* out);
ExpandFn expand_kernel();

// out[r][n] = c[r][n] * column_scale[n] + bias[n] + add[r][n], in float after each, rounded to out's type at the end;
// null operands are left out.
struct LinearFinish {
  const float* c;  // [rows][64]
  const float *column_scale, *bias;
  layout::ConstElements add;
  layout::Elements out;
  int64_t stride;  // elements from row to row of out and add
  int64_t rows, width;
};
using FinishFn = void (*)(const LinearFinish&);
FinishFn finish_kernel();

// One table per format; defined in linear.cpp from what the ISA files export.
namespace scalar {
extern const LinearFn linear_f32, linear_bf16, linear_s8, linear_s8_grouped, linear_u4, linear_u4_zero;
extern const ExpandFn linear_expand;
extern const FinishFn linear_finish;
}  // namespace scalar
namespace avx2 {
extern const LinearFn linear_f32, linear_bf16, linear_s8, linear_s8_grouped, linear_u4, linear_u4_zero;
extern const ExpandFn linear_expand;
extern const FinishFn linear_finish;
}  // namespace avx2
namespace avxvnni {
extern const LinearFn linear_s8, linear_s8_grouped, linear_u4, linear_u4_zero;
}
namespace avx512 {
extern const LinearFn linear_f32, linear_bf16;
extern const ExpandFn linear_expand;
extern const FinishFn linear_finish;
}  // namespace avx512
namespace avx512bf16 {
extern const LinearFn linear_bf16;
}
namespace avx512vnni {
extern const LinearFn linear_s8, linear_s8_grouped, linear_u4, linear_u4_zero;
}
namespace amx {
extern const LinearFn linear_bf16, linear_s8, linear_s8_grouped, linear_u4, linear_u4_zero;
}

}  // namespace torch_cpullm::kernels
