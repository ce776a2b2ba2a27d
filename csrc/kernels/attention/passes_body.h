// What happens to a row between the two products, written once against the lanes of isa/*.h.
//
// Everything is in powers of two: scores arrive multiplied by log2(e), and a chunk's shift is a whole number. Rescaling
// what another chunk left is then exact, so it does not matter which chunk's maximum was known when: whole score rows
// (SlimAttention) and running maxima (FlashAttention) give the same bits.
#pragma once
#include <algorithm>
#include <cstring>

#include "isa/math.h"
#include "isa/tail.h"
#include "kernels/attention/attention.h"

namespace torch_cpullm {
namespace {

using kernels::kLog2E;
using kernels::RowLayout;
using kernels::RowScores;
using layout::Format;
using layout::kChunkTokens;

// Numbers of a row against int8: 128 * high + low with 0 <= low < 128. Queries use both signs and must keep high above
// -128, whose negation AVX2 needs.
constexpr float kQueryPeak = 127.0f * 128.0f;
constexpr float kWeightPeak = 127.0f * 128.0f + 127.0f;
constexpr int kLowBits = 7, kLowMask = 127;

inline void store_digits(uint8_t* row, int64_t plane, int64_t i, i32x16 number) {
  store_s8(reinterpret_cast<int8_t*>(row) + i, shift_right(number, kLowBits));
  store_s8(reinterpret_cast<int8_t*>(row) + plane + i, bit_and(number, kLowMask));
}

// The scale of a row: absmax / kQueryPeak; NaN where a number is NaN or Inf.
template <class T>
inline float query_scale(const T* x, int64_t depth) {
  f32x16 largest = zero_f32(), poison = zero_f32();
  for (int64_t i = 0; i < depth; i += 16) {
    const f32x16 a = load_as_f32(x + i);
    largest = max(abs(a), largest);
    poison = fma(a, zero_f32(), poison);
  }
  return reduce_max(largest) / kQueryPeak + reduce_add(poison);
}

inline void clear_row(Format format, int64_t depth, uint8_t* row) {
  std::memset(row, 0, static_cast<size_t>(RowLayout(format, depth).bytes));
}

float encode_f32(layout::ConstElements x, int64_t depth, uint8_t* row, int32_t*) {
  clear_row(Format::f32, depth, row);
  with_type(x, [&](const auto* from) {
    for (int64_t i = 0; i < depth; i += 16) store_f32(reinterpret_cast<float*>(row) + i, load_as_f32(from + i));
  });
  return 1.0f;
}

float encode_bf16(layout::ConstElements x, int64_t depth, uint8_t* row, int32_t*) {
  clear_row(Format::bf16, depth, row);
  with_type(x, [&](const auto* from) {
    for (int64_t i = 0; i < depth; i += 16) store_bf16(reinterpret_cast<uint16_t*>(row) + i, load_as_f32(from + i));
  });
  return 1.0f;
}

float encode_int8(layout::ConstElements x, int64_t depth, uint8_t* row, int32_t* sum) {
  clear_row(Format::int8, depth, row);
  const int64_t plane = RowLayout(Format::int8, depth).plane;
  float scale = 0.0f;
  with_type(x, [&](const auto* from) {
    scale = query_scale(from, depth);
    const f32x16 inverse = set1_f32(scale > 1e-37f ? 1.0f / scale : 0.0f), peak = set1_f32(kQueryPeak);
    i32x16 total = set1_i32(0);
    for (int64_t i = 0; i < depth; i += 16) {
      const f32x16 near = max(min(mul(load_as_f32(from + i), inverse), peak), set1_f32(-kQueryPeak));
      const i32x16 number = to_i32(near);
      store_digits(row, plane, i, number);
      total = add(total, number);
    }
    *sum = reduce_add(total);
  });
  return scale;
}

// body(i) for the vectors that hold some of [begin, end), and the mask of a vector's lanes within.
template <class Body>
inline void for_seen(const RowScores& t, const Body& body) {
  for (int64_t i = t.begin / 16 * 16; i < t.end; i += 16) body(i);
}
inline f32x16 within(const RowScores& t, int64_t i, f32x16 a) {
  if (i >= t.begin && i + 16 <= t.end) return a;
  return keep_lanes(a, static_cast<int>(std::clamp<int64_t>(t.begin - i, 0, 16)),
                    static_cast<int>(std::clamp<int64_t>(t.end - i, 0, 16)));
}

inline f32x16 altered(const RowScores& t, int64_t i) {
  f32x16 s = mul(load_f32(t.s + i), load_f32(t.key_scale + i));
  if (t.soft_cap > 0.0f) {
    const float cap = t.soft_cap * kLog2E;
    s = mul(set1_f32(cap), tanh(mul(s, set1_f32(1.0f / cap))));
  }
  if (t.slope != 0.0f) {
    f32x16 distance = zero_f32();
    float lanes[16];
    for (int lane = 0; lane < 16; ++lane) lanes[lane] = static_cast<float>(i + lane - t.position);
    distance = load_f32(lanes);
    s = fma(set1_f32(t.slope * kLog2E), distance, s);
  }
  // Bias and mask rows end where the tokens do.
  const int count = static_cast<int>(std::min<int64_t>(t.end - i, 16));
  if (t.bias) {  // what it hides is gone, a NaN as well
    const f32x16 bias = load_f32_tail(t.bias + i, count);
    s = select_less(bias, set1_f32(kernels::kHiddenBelow), set1_f32(-INFINITY), fma(bias, set1_f32(kLog2E), s));
  }
  if (t.keep && count == 16) {
    s = mask_bytes(s, t.keep + i);
  } else if (t.keep) {
    uint8_t bytes[16] = {};
    std::memcpy(bytes, t.keep + i, static_cast<size_t>(count));
    s = mask_bytes(s, bytes);
  }
  return s;
}

float largest(const RowScores& t) {
  f32x16 most = set1_f32(-INFINITY);
  if (t.altered) {
    for_seen(t, [&](int64_t i) {
      const f32x16 s = within(t, i, altered(t, i));
      store_f32(t.s + i, s);
      most = max(s, most);
    });
  } else {
    for_seen(t, [&](int64_t i) { most = max(within(t, i, mul(load_f32(t.s + i), load_f32(t.key_scale + i))), most); });
  }
  return reduce_max(most);
}

// Weights of four vectors are made side by side, for their long chains of operations.
constexpr int kSide = 4;
constexpr int64_t kSideTokens = 16 * kSide;

// How weights are written, by format.
struct F32Weights {
  float* row;
  explicit F32Weights(uint8_t* to) : row(reinterpret_cast<float*>(to)) {}
  void put(int64_t i, const f32x16 (&p)[kSide], const float*) {
    for (int v = 0; v < kSide; ++v) store_f32(row + i + 16 * v, p[v]);
  }
  int32_t sum() const { return 0; }
};
struct Bf16Weights {
  uint16_t* row;
  explicit Bf16Weights(uint8_t* to) : row(reinterpret_cast<uint16_t*>(to)) {}
  void put(int64_t i, const f32x16 (&p)[kSide], const float*) {
    for (int v = 0; v < kSide; ++v) store_bf16(row + i + 16 * v, p[v]);
  }
  int32_t sum() const { return 0; }
};
struct Int8Weights {
  int8_t* row;
  i32x16 total = set1_i32(0);
  explicit Int8Weights(uint8_t* to) : row(reinterpret_cast<int8_t*>(to)) {}
  void put(int64_t i, const f32x16 (&p)[kSide], const float* value_scale) {
    i32x16 number[kSide];
#pragma GCC unroll 4
    for (int v = 0; v < kSide; ++v) {
      const f32x16 scaled = mul(p[v], load_f32(value_scale + i + 16 * v));
      number[v] = to_i32(min(scaled, set1_f32(kWeightPeak)));  // NaN becomes the peak
    }
    store_digits(row + i, row + kChunkTokens + i, number);
    total = add(total, add(add(number[0], number[1]), add(number[2], number[3])));
  }
  int32_t sum() const { return reduce_add(total); }
};

inline void load_scores(const RowScores& t, int64_t first, f32x16 (&s)[kSide]) {
#pragma GCC unroll 4
  for (int v = 0; v < kSide; ++v) s[v] = load_f32(t.s + first + 16 * v);
  if (!t.altered) {
#pragma GCC unroll 4
    for (int v = 0; v < kSide; ++v) s[v] = mul(s[v], load_f32(t.key_scale + first + 16 * v));
  }
  if (first >= t.begin && first + kSideTokens <= t.end) return;
#pragma GCC unroll 4
  for (int v = 0; v < kSide; ++v) s[v] = within(t, first + 16 * v, s[v]);
}

template <class Weights, Format kFormat>
float weigh(const RowScores& scores, float shift, uint8_t* row, int32_t* number_sum) {
  const RowScores t = scores;  // in registers: the stores of bytes could be to it
  const RowLayout layout(kFormat, kChunkTokens);
  const int64_t begin = t.begin / kSideTokens * kSideTokens;
  const int64_t end = (t.end + kSideTokens - 1) / kSideTokens * kSideTokens;
  if (begin > 0 || end < kChunkTokens) std::memset(row, 0, static_cast<size_t>(layout.bytes));
  Weights weights(row);
  const f32x16 down = set1_f32(shift);
  f32x16 sum = zero_f32();
  constexpr int64_t kSideLines = kernels::kWeighLines * kSideTokens / kChunkTokens;
  int64_t line = 0;
  for (int64_t i = begin; i < end; i += kSideTokens) {
    f32x16 p[kSide];
    load_scores(t, i, p);
#pragma GCC unroll 4
    for (int v = 0; v < kSide; ++v) p[v] = exp2(sub(p[v], down));
    for (const int64_t until = std::min(line + kSideLines, t.ahead_lines); line < until; ++line)
      __builtin_prefetch(t.ahead + line * layout::kLineBytes, 0, 2);
    weights.put(i, p, t.value_scale);
    if (t.sound) {
#pragma GCC unroll 4
      for (int v = 0; v < kSide; ++v) p[v] = zero_where_zero(p[v], mul(p[v], load_f32(t.sound + i + 16 * v)));
    }
    sum = add(sum, add(add(p[0], p[1]), add(p[2], p[3])));
  }
  *number_sum = weights.sum();
  return reduce_add(sum);
}

bool take_scales(const float* from, int64_t n, float* to) {
  f32x16 poison = zero_f32();
  for (int64_t i = 0; i < n; i += 16) {
    const f32x16 scale = load_f32(from + i);
    store_f32(to + i, scale);
    poison = fma(scale, zero_f32(), poison);
  }
  return reduce_add(poison) == 0.0f;
}

float largest_scale(const float* scale, int64_t n) {
  f32x16 most = zero_f32();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) most = max(load_f32(scale + i), most);
  if (i < n) most = max(load_f32_tail(scale + i, static_cast<int>(n - i)), most);
  return reduce_max(most);
}

void combine(float* total, float before, const float* part, float now, int64_t n) {
  const f32x16 old_factor = set1_f32(before), new_factor = set1_f32(now);
  for (int64_t i = 0; i < n; i += 16)
    store_f32(total + i, fma(load_f32(part + i), new_factor, mul(load_f32(total + i), old_factor)));
}

void finish(const float* total, float factor, int64_t n, layout::Elements out) {
  with_type(out, [&](auto* to) {
    for (int64_t i = 0; i < n; i += 16) WholeVector{}.store(to + i, mul(load_f32(total + i), set1_f32(factor)));
  });
}

const kernels::AttentionPasses kPasses{
    {encode_f32, encode_bf16, encode_int8},
    largest,
    {weigh<F32Weights, Format::f32>, weigh<Bf16Weights, Format::bf16>, weigh<Int8Weights, Format::int8>},
    take_scales,
    largest_scale,
    combine,
    finish};

}  // namespace
}  // namespace torch_cpullm
