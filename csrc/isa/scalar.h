// Sixteen lanes in plain C++: the definition of every lane operation, and the fallback that runs on any CPU.
//
// avx2.h and avx512.h define the same names with the same results, bit for bit: multiplications that feed an addition
// are fused everywhere, and every reduction folds halves (16 -> 8 -> 4 -> 2 -> 1). A kernel body written once against
// these names is therefore one algorithm, not three.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "layout/float16.h"

#define TORCH_CPULLM_LANES "scalar"

namespace torch_cpullm {
namespace {

// Rows a register tile may hold. One: a scalar tile gains nothing from more.
constexpr int kLinearStreamRows = 1;
constexpr int kLinearGroupRows = 1;
constexpr int kLinearWideRows = 0;  // 0: none
constexpr int kLinearWideGroupRows = 0;
constexpr int kLinearWideFrom = 0;
constexpr int kAttentionSums = 4;

struct f32x16 {
  float v[16];
};
struct i32x16 {
  int32_t v[16];
};

template <class Fn>
inline f32x16 each_lane(Fn fn) {
  f32x16 out;
  for (int i = 0; i < 16; ++i) out.v[i] = fn(i);
  return out;
}

inline f32x16 zero_f32() {
  return each_lane([](int) { return 0.0f; });
}
inline f32x16 set1_f32(float x) {
  return each_lane([&](int) { return x; });
}
inline f32x16 load_f32(const float* p) {
  return each_lane([&](int i) { return p[i]; });
}
inline f32x16 load_f32_tail(const float* p, int count) {
  return each_lane([&](int i) { return i < count ? p[i] : 0.0f; });
}
inline void store_f32(float* p, f32x16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline void store_f32_tail(float* p, f32x16 a, int count) {
  for (int i = 0; i < count; ++i) p[i] = a.v[i];
}
inline f32x16 add(f32x16 a, f32x16 b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline f32x16 sub(f32x16 a, f32x16 b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline f32x16 mul(f32x16 a, f32x16 b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline f32x16 div(f32x16 a, f32x16 b) {
  return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
// a * b + c, rounded once.
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return each_lane([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
// The larger of a and b; b where either is NaN (the rule of the x86 instruction).
inline f32x16 max(f32x16 a, f32x16 b) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline f32x16 min(f32x16 a, f32x16 b) {
  return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline f32x16 abs(f32x16 a) {
  return each_lane([&](int i) { return std::fabs(a.v[i]); });
}
// Nearest integer, ties to even.
inline f32x16 round_even(f32x16 a) {
  return each_lane([&](int i) { return std::nearbyint(a.v[i]); });
}
// then where x < limit, otherwise.
inline f32x16 select_less(f32x16 x, f32x16 limit, f32x16 then, f32x16 otherwise) {
  return each_lane([&](int i) { return x.v[i] < limit.v[i] ? then.v[i] : otherwise.v[i]; });
}
// zero where p == 0, otherwise: keeps 0 * NaN out of a sum.
inline f32x16 zero_where_zero(f32x16 p, f32x16 otherwise) {
  return each_lane([&](int i) { return p.v[i] == 0.0f ? 0.0f : otherwise.v[i]; });
}
// -infinity where keep[i] == 0, else a.
inline f32x16 mask_bytes(f32x16 a, const uint8_t* keep) {
  return each_lane([&](int i) { return keep[i] ? a.v[i] : -INFINITY; });
}
// -infinity outside lanes [begin, end).
inline f32x16 keep_lanes(f32x16 a, int begin, int end) {
  return each_lane([&](int i) { return i >= begin && i < end ? a.v[i] : -INFINITY; });
}
// Bit i: a[i] >= border[i]; never for a NaN.
inline uint32_t at_least(f32x16 a, f32x16 border) {
  uint32_t lanes = 0;
  for (int i = 0; i < 16; ++i) lanes |= static_cast<uint32_t>(a.v[i] >= border.v[i]) << i;
  return lanes;
}
// The chosen lanes, one behind the other; how many. All sixteen places of p may be written.
inline int store_chosen(float* p, f32x16 a, uint32_t lanes) {
  int count = 0;
  for (int i = 0; i < 16; ++i)
    if (lanes >> i & 1u) p[count++] = a.v[i];
  return count;
}
// The last bits of each number, moved to where its exponent is.
inline f32x16 last_bits_as_exponent(f32x16 a) {
  return each_lane([&](int i) {
    uint32_t bits;
    std::memcpy(&bits, &a.v[i], sizeof bits);
    bits <<= 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
  });
}
inline float reduce_add(f32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float reduce_max(f32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}

template <class Fn>
inline i32x16 each_int(Fn fn) {
  i32x16 out;
  for (int i = 0; i < 16; ++i) out.v[i] = fn(i);
  return out;
}
inline i32x16 set1_i32(int32_t x) {
  return each_int([&](int) { return x; });
}
inline i32x16 add(i32x16 a, i32x16 b) {
  return each_int([&](int i) { return a.v[i] + b.v[i]; });
}
inline int32_t reduce_add(i32x16 a) {
  int32_t sum = 0;
  for (int32_t lane : a.v) sum += lane;
  return sum;
}
inline i32x16 shift_left(i32x16 a, int bits) {
  return each_int([&](int i) { return a.v[i] * (1 << bits); });
}
// With the sign.
inline i32x16 shift_right(i32x16 a, int bits) {
  return each_int([&](int i) { return a.v[i] >> bits; });
}
inline i32x16 bit_and(i32x16 a, int32_t mask) {
  return each_int([&](int i) { return a.v[i] & mask; });
}
// a * b for lanes in int16.
inline i32x16 mul_i16(i32x16 a, i32x16 b) {
  return each_int([&](int i) { return a.v[i] * b.v[i]; });
}
inline f32x16 to_f32(i32x16 a) {
  return each_lane([&](int i) { return static_cast<float>(a.v[i]); });
}
// Rounded to the nearest integer, ties to even; lanes that fit int32.
inline i32x16 to_i32(f32x16 a) {
  return each_int([&](int i) { return static_cast<int32_t>(std::nearbyint(a.v[i])); });
}

// Sixteen stored elements as float.
inline f32x16 load_as_f32(const float* p) { return load_f32(p); }
inline f32x16 load_as_f32(const uint16_t* bf16) {
  return each_lane([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(bf16[i]) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
  });
}
inline f32x16 load_as_f32(const int8_t* p) {
  return each_lane([&](int i) { return static_cast<float>(p[i]); });
}

// Rounded to bf16, ties to even; NaN stays NaN.
inline uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void store_bf16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = bf16_bits(a.v[i]);
}
// Lanes in [-128, 127], as signed bytes.
inline void store_s8(int8_t* p, i32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
// Sixty-four numbers in [0, 2^14) as two bytes each, 128 * high + low.
inline void store_digits(int8_t* high, int8_t* low, const i32x16 (&number)[4]) {
  for (int i = 0; i < 64; ++i) {
    high[i] = static_cast<int8_t>(number[i / 16].v[i % 16] >> 7);
    low[i] = static_cast<int8_t>(number[i / 16].v[i % 16] & 127);
  }
}
inline f32x16 load_as_f32(const layout::float16* p) {
  return each_lane([&](int i) { return layout::to_float(p[i]); });
}
inline void store_f16(layout::float16* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = layout::to_float16(a.v[i]);
}
inline i32x16 load_as_i32(const uint8_t* p) {
  return each_int([&](int i) { return static_cast<int32_t>(p[i]); });
}

// 64 unsigned bytes: 16 columns x 4 k of a weight line.
struct u8x64 {
  uint8_t v[64];
};
inline u8x64 load_u8(const uint8_t* p) {
  u8x64 out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline u8x64 low_nibbles(u8x64 a) {
  for (uint8_t& byte : a.v) byte &= 15;
  return a;
}
inline u8x64 high_nibbles(u8x64 a) {
  for (uint8_t& byte : a.v) byte >>= 4;
  return a;
}
// Byte j of each column's four.
inline i32x16 byte_of(u8x64 a, int j) {
  return each_int([&](int i) { return static_cast<int32_t>(a.v[4 * i + j]); });
}

// What dot4 leaves to be subtracted: the 128 that stored weights are above their codes, times the activations.
inline i32x16 dot4_start(i32x16 minus_act_sum) { return shift_left(minus_act_sum, 7); }
// acc[n] += sum over 4 k of (unsigned weight[n][k]) * (signed activation[k]); `four` holds the activations, in each
// lane.
inline i32x16 dot4(i32x16 acc, u8x64 weight, i32x16 four) {
  int8_t a[4];
  std::memcpy(a, four.v, sizeof a);
  for (int n = 0; n < 16; ++n)
    for (int k = 0; k < 4; ++k) acc.v[n] += static_cast<int32_t>(weight.v[4 * n + k]) * a[k];
  return acc;
}
// The same for weights below 16, without an offset.
inline i32x16 dot4_small(i32x16 acc, u8x64 weight, i32x16 four) { return dot4(acc, weight, four); }

// 16 columns x 2 k of bf16.
struct bf16x32 {
  uint16_t v[32];
};
inline bf16x32 load_bf16(const uint8_t* p) {
  bf16x32 out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
// Stores the pair (even[n], odd[n]) of each column, rounded to bf16.
inline void store_bf16_pairs(uint8_t* p, f32x16 even, f32x16 odd) {
  bf16x32 out;
  for (int n = 0; n < 16; ++n) {
    out.v[2 * n] = bf16_bits(even.v[n]);
    out.v[2 * n + 1] = bf16_bits(odd.v[n]);
  }
  std::memcpy(p, out.v, sizeof out.v);
}
// acc[n] += weight[n][0] * activation[0] + weight[n][1] * activation[1]; `pair` holds the two, in each lane. Two fused
// steps.
inline f32x16 dot2(f32x16 acc, bf16x32 weight, i32x16 pair) {
  const auto widen = [](uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
  };
  const auto two = static_cast<uint32_t>(pair.v[0]);
  for (int n = 0; n < 16; ++n) {
    acc.v[n] = std::fma(widen(static_cast<uint32_t>(weight.v[2 * n]) << 16), widen(two << 16), acc.v[n]);
    acc.v[n] = std::fma(widen(static_cast<uint32_t>(weight.v[2 * n + 1]) << 16), widen(two & 0xffff0000u), acc.v[n]);
  }
  return acc;
}

}  // namespace
}  // namespace torch_cpullm
