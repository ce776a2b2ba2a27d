// Weight quantisation, written once against the lanes of isa/*.h; each ISA file includes this inside its target region.
#pragma once
#include "isa/tail.h"
#include "kernels/quantize/quantize.h"

namespace torch_cpullm {
namespace {

void widen(layout::ConstElements elements, int64_t n, float* out) {
  with_type(elements, [&](const auto* x) {
    for_lanes(n, [&](int64_t i, auto lanes) { lanes.store(out + i, lanes.load(x + i)); });
  });
}

kernels::Extremes extremes(const float* x, int64_t n) {
  f32x16 largest = set1_f32(-INFINITY), negated = set1_f32(-INFINITY), poison = zero_f32();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const f32x16 a = load_f32(x + i);
    largest = max(a, largest);
    negated = max(sub(zero_f32(), a), negated);
    poison = fma(a, zero_f32(), poison);  // x * 0 is NaN exactly where x is not finite
  }
  kernels::Extremes found{-reduce_max(negated), reduce_max(largest)};
  float bad = reduce_add(poison);
  for (; i < n; ++i) {
    found.lowest = x[i] < found.lowest ? x[i] : found.lowest;
    found.highest = x[i] > found.highest ? x[i] : found.highest;
    bad += x[i] * 0.0f;
  }
  return {found.lowest + bad, found.highest + bad};
}

// Divided and not multiplied by 1 / scale, which is no finite float where the scale is denormal.
inline f32x16 code_on(f32x16 x, const kernels::Grid& grid) {
  const f32x16 code = add(div(x, set1_f32(grid.scale)), set1_f32(grid.zero));
  return max(min(round_even(code), set1_f32(grid.highest)), set1_f32(grid.lowest));
}

inline bool is_usable(float scale) { return scale > 0.0f || scale < 0.0f; }

void encode(const float* x, int64_t n, const kernels::Grid& grid, int8_t* codes) {
  if (!is_usable(grid.scale)) {
    std::memset(codes, static_cast<int>(grid.zero), static_cast<size_t>(n));
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_s8(codes + i, to_i32(code_on(load_f32(x + i), grid)));
  if (i == n) return;
  int8_t rest[16];
  store_s8(rest, to_i32(code_on(load_f32_tail(x + i, static_cast<int>(n - i)), grid)));
  std::memcpy(codes + i, rest, static_cast<size_t>(n - i));
}

float error(const float* x, int64_t n, const kernels::Grid& grid) {
  const float scale = is_usable(grid.scale) ? grid.scale : 1.0f;
  const kernels::Grid usable{scale, grid.zero, grid.lowest, grid.highest};
  f32x16 total = zero_f32();
  for_lanes(n, [&](int64_t i, auto lanes) {  // beyond n: x and its code's value are 0
    const f32x16 a = lanes.load(x + i);
    const f32x16 steps = sub(code_on(a, usable), set1_f32(grid.zero));
    const f32x16 off = sub(a, mul(steps, set1_f32(grid.scale)));
    total = fma(off, off, total);
  });
  return reduce_add(total);
}

}  // namespace
}  // namespace torch_cpullm
