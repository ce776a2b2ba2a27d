// The attention kernels, written once against the lanes of isa/*.h; each ISA file includes this inside its region.
//
// Scores: lanes run over tokens, so 2 vectors hold a page. Per channel: 2 key vectors are loaded and widened, R queries
// broadcast, 2R multiply-adds issued; at R = 12 that is 24 in 12 cycles, with the widening hidden beside them.
// Values: lanes run over channels, 4 vectors (64 channels) at a time; per token 4 loads, R broadcasts, 4R
// multiply-adds.
#pragma once
#include "isa/math.h"
#include "kernels/attention/attention.h"

namespace torch_cpullm {
namespace {

using layout::Format;
using layout::kPageTokens;

template <class Element>
constexpr Format kFormatOf = sizeof(Element) == 4   ? Format::f32
                             : sizeof(Element) == 2 ? Format::bf16
                                                    : Format::int8;

template <class Element, int Rows>
void score_rows(const kernels::ScoreTile& t) {
  f32x16 acc[Rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = zero_f32();
  const auto* keys = reinterpret_cast<const Element*>(t.head);
  for (int64_t c = 0; c < t.channels; ++c) {
    const f32x16 low = load_as_f32(keys + c * kPageTokens), high = load_as_f32(keys + c * kPageTokens + 16);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const f32x16 q = set1_f32(t.q[r * t.q_stride + c]);
      acc[r][0] = fma(low, q, acc[r][0]);
      acc[r][1] = fma(high, q, acc[r][1]);
    }
  }
  const auto* scale = reinterpret_cast<const float*>(t.head + layout::key_scale_offset(kFormatOf<Element>, t.channels));
  const f32x16 scale_low = load_f32(scale), scale_high = load_f32(scale + 16);
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    store_f32(t.scores + r * t.score_stride, mul(acc[r][0], scale_low));
    store_f32(t.scores + r * t.score_stride + 16, mul(acc[r][1], scale_high));
  }
}

template <class Element, int Rows = kScoreTileRows>
void scores(const kernels::ScoreTile& t) {
  if constexpr (Rows > 1) {
    if (t.rows < Rows) return scores<Element, Rows - 1>(t);
  }
  score_rows<Element, Rows>(t);
}

// Columns [first, first + 16 * Vectors) of the value product.
template <class Element, int Rows, int Vectors>
void value_columns(const kernels::ValueTile& t, int64_t first) {
  f32x16 acc[Rows][Vectors];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[r][v] = load_f32(t.acc + r * t.acc_stride + first + 16 * v);
  }
  const auto* values = reinterpret_cast<const Element*>(t.head + layout::value_offset(kFormatOf<Element>, t.channels));
  for (int64_t token = 0; token < t.tokens; ++token) {
    f32x16 value[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) value[v] = load_as_f32(values + token * t.channels + first + 16 * v);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const f32x16 p = set1_f32(t.p[r * t.p_stride + token]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(value[v], p, acc[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store_f32(t.acc + r * t.acc_stride + first + 16 * v, acc[r][v]);
  }
}

template <class Element, int Rows = kValueTileRows>
void values(const kernels::ValueTile& t) {
  if constexpr (Rows > 1) {
    if (t.rows < Rows) return values<Element, Rows - 1>(t);
  }
  int64_t first = 0;
  for (; first + 64 <= t.channels; first += 64) value_columns<Element, Rows, 4>(t, first);
  for (; first < t.channels; first += 16) value_columns<Element, Rows, 1>(t, first);
}

// Score and probability rows are whole pages long: n is a multiple of 32 below.
void soft_cap(float* s, int64_t n, float cap) {
  const f32x16 limit = set1_f32(cap), inverse = set1_f32(1.0f / cap);
  for (int64_t i = 0; i < n; i += 16) store_f32(s + i, mul(limit, tanh(mul(load_f32(s + i), inverse))));
}

inline void drop_masked(float* s, int64_t count, int64_t padded, const uint8_t* keep) {
  int64_t i = 0;
  if (keep) {
    for (; i + 16 <= count; i += 16) store_f32(s + i, mask_bytes(load_f32(s + i), keep + i));
    for (; i < count; ++i) s[i] = keep[i] ? s[i] : -INFINITY;
  }
  for (i = count; i < padded; ++i) s[i] = -INFINITY;
}

float softmax(float* s, int64_t count, int64_t padded, const uint8_t* keep) {
  drop_masked(s, count, padded, keep);
  f32x16 largest = set1_f32(-INFINITY);
  for (int64_t i = 0; i < padded; i += 16) largest = max(load_f32(s + i), largest);
  const float maximum = reduce_max(largest);
  // All that is seen scores -inf or NaN: such a row has no softmax. With nothing seen (count 0) it becomes zeros.
  if (maximum == -INFINITY && count > 0) return NAN;
  // -inf - -inf would be NaN. (One NaN score among others is skipped by max and poisons the sum below.)
  const f32x16 shift = set1_f32(maximum == -INFINITY ? 0.0f : maximum);
  f32x16 sum = zero_f32();
  for (int64_t i = 0; i < padded; i += 16) {
    const f32x16 p = exp(sub(load_f32(s + i), shift));
    store_f32(s + i, p);
    sum = add(sum, p);
  }
  return reduce_add(sum);
}

void fold_value_scale(float* p, const float* value_scale) {
  for (int64_t i = 0; i < kPageTokens; i += 16) {
    const f32x16 probability = load_f32(p + i);
    store_f32(p + i, zero_where_zero(probability, mul(probability, load_f32(value_scale + i))));
  }
}

}  // namespace
}  // namespace torch_cpullm
