// The sampling kernels, written once against the lanes of isa/*.h; each ISA file includes this inside its target
// region.
#pragma once
#include "isa/math.h"
#include "isa/tail.h"
#include "kernels/sample/sample.h"

namespace torch_cpullm {
namespace {

using kernels::kBorders;
using kernels::kScoreBlock;
using kernels::kScoreLanes;

void scale(layout::ConstElements x, int64_t n, float temperature, float* out) {
  const int64_t whole = n / kScoreLanes * kScoreLanes;
  if (whole < n) store_f32(out + whole, set1_f32(-INFINITY));
  const f32x16 divisor = set1_f32(temperature);
  with_type(x, [&](const auto* row) {
    if (temperature == 1.0f)  // a division takes 16 cycles, the rest of the pass 4
      return for_lanes(n, [&](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(row + i)); });
    for_lanes(n, [&](int64_t i, auto lanes) { lanes.store(out + i, div(lanes.load(row + i), divisor)); });
  });
}

// body(begin, end) for each block.
template <class Body>
inline void for_score_blocks(int64_t n, const Body& body) {
  for (int64_t begin = 0; begin < n; begin += kScoreBlock)
    body(begin, begin + kScoreBlock < n ? begin + kScoreBlock : n);
}

kernels::Peak maxima(const float* scores, int64_t n, float* out) {
  const f32x16 lowest = set1_f32(-3.402823466e38f);  // x * 0 is NaN for -Inf as well, which is no fault
  f32x16 poison = zero_f32(), largest = set1_f32(-INFINITY);
  for_score_blocks(n, [&](int64_t begin, int64_t end) {
    f32x16 of_block = set1_f32(-INFINITY);
    for (int64_t i = begin; i < end; i += kScoreLanes) {
      const f32x16 a = load_f32(scores + i);
      of_block = max(a, of_block);  // a NaN leaves the second operand
      poison = fma(max(lowest, a), zero_f32(), poison);
    }
    store_f32(out + begin / kScoreBlock * kScoreLanes, of_block);
    largest = max(of_block, largest);
  });
  return {reduce_max(largest), reduce_add(poison)};
}

int64_t count(const float* scores, int64_t n, float border) {
  const f32x16 least = set1_f32(border);
  int64_t found = 0;
  for (int64_t i = 0; i < n; i += kScoreLanes) found += __builtin_popcount(at_least(load_f32(scores + i), least));
  return found;
}

int64_t gather(const float* scores, int64_t n, float low, float high, float* out, int32_t* positions) {
  const f32x16 least = set1_f32(low), above = set1_f32(high);
  int64_t found = 0;
  for (int64_t i = 0; i < n; i += kScoreLanes) {
    const f32x16 a = load_f32(scores + i);
    const uint32_t lanes = at_least(a, least) & ~at_least(a, above);
    if (lanes == 0) continue;
    if (positions) {
      int64_t next = found;
      for (uint32_t left = lanes; left; left &= left - 1)
        positions[next++] = static_cast<int32_t>(i) + __builtin_ctz(left);
    }
    found += store_chosen(out + found, a, lanes);
  }
  store_f32(out + found, set1_f32(-INFINITY));
  return found;
}

// exp(score - largest) where score >= border, else 0.
inline f32x16 weight(f32x16 score, f32x16 largest, f32x16 border) {
  return select_less(score, border, zero_f32(), exp(sub(score, largest)));
}

void masses(const float* scores, int64_t n, float largest, const float* borders, double* out) {
  const f32x16 shift = set1_f32(largest);
  f32x16 border[kBorders];
  for (int j = 0; j < kBorders; ++j) {
    border[j] = set1_f32(borders[j]);
    out[j] = 0.0;
  }
  for_score_blocks(n, [&](int64_t begin, int64_t end) {
    f32x16 sum[kBorders];
    for (f32x16& one : sum) one = zero_f32();
    for (int64_t i = begin; i < end; i += kScoreLanes) {
      const f32x16 a = load_f32(scores + i), e = exp(sub(a, shift));
#pragma GCC unroll 8
      for (int j = 0; j < kBorders; ++j) sum[j] = add(sum[j], select_less(a, border[j], zero_f32(), e));
    }
    for (int j = 0; j < kBorders; ++j) out[j] += static_cast<double>(reduce_add(sum[j]));
  });
}

void block_masses(const float* scores, int64_t n, float largest, float border, float* out) {
  const f32x16 shift = set1_f32(largest), least = set1_f32(border);
  for_score_blocks(n, [&](int64_t begin, int64_t end) {
    f32x16 sum = zero_f32();
    for (int64_t i = begin; i < end; i += kScoreLanes) {
      const f32x16 a = load_f32(scores + i);
      if (at_least(a, least)) sum = add(sum, weight(a, shift, least));  // after a filter most vectors hold nothing
    }
    out[begin / kScoreBlock] = reduce_add(sum);
  });
}

void weights(const float* scores, int64_t n, float largest, float border, float* out) {
  const f32x16 shift = set1_f32(largest), least = set1_f32(border);
  for (int64_t i = 0; i < n; i += kScoreLanes) store_f32(out + i, weight(load_f32(scores + i), shift, least));
}

}  // namespace
}  // namespace torch_cpullm
