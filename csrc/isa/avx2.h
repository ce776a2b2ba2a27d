// Sixteen lanes as two ymm registers. Include after the file's own includes: the rest of the file is compiled for AVX2,
// FMA and F16C, and nothing outside it (no -m flags: inline functions of other headers stay baseline code).
// TORCH_CPULLM_AVXVNNI, defined before the include, adds the 256-bit vpdpbusd.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "layout/float16.h"

#ifdef TORCH_CPULLM_AVXVNNI
#define TORCH_CPULLM_LANES "avxvnni"
#define TORCH_CPULLM_TARGET "avx2,fma,f16c,avxvnni"
#else
#define TORCH_CPULLM_LANES "avx2"
#define TORCH_CPULLM_TARGET "avx2,fma,f16c"
#endif
#include "isa/region.h"

namespace torch_cpullm {
namespace {

// 16 ymm registers: 6 rows x 16 columns = 12 accumulators + 2 weights + 1 broadcast. With groups each sum has a second
// register: 3 rows = 6 + 6 + 2 + 1. Plain AVX2 takes two more for its int8 product, and the compiler some from the
// stack.
constexpr int kLinearStreamRows = 6;
constexpr int kLinearGroupRows = 3;
constexpr int kLinearWideRows = 0;  // 0: none
constexpr int kLinearWideGroupRows = 0;
constexpr int kLinearWideFrom = 0;
// Sums of an attention tile: 8 of the 16 ymm registers, 4 for two lines, 2 or 4 for the broadcasts.
constexpr int kAttentionSums = 4;

struct f32x16 {
  __m256 lo, hi;
};
struct i32x16 {
  __m256i lo, hi;
};

inline f32x16 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline f32x16 set1_f32(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32x16 load_f32(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline f32x16 load_f32_tail(const float* p, int count) {
  alignas(32) float lanes[16] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(float));
  return load_f32(lanes);
}
inline void store_f32(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void store_f32_tail(float* p, f32x16 a, int count) {
  alignas(32) float lanes[16];
  store_f32(lanes, a);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(float));
}
inline f32x16 add(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline f32x16 div(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline f32x16 abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline f32x16 round_even(f32x16 a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline f32x16 select_less(f32x16 x, f32x16 limit, f32x16 then, f32x16 otherwise) {
  return {_mm256_blendv_ps(otherwise.lo, then.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(otherwise.hi, then.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_LT_OQ))};
}
inline f32x16 zero_where_zero(f32x16 p, f32x16 otherwise) {
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_andnot_ps(_mm256_cmp_ps(p.lo, zero, _CMP_EQ_OQ), otherwise.lo),
          _mm256_andnot_ps(_mm256_cmp_ps(p.hi, zero, _CMP_EQ_OQ), otherwise.hi)};
}
inline f32x16 mask_bytes(f32x16 a, const uint8_t* keep) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keep));
  const __m256i zero = _mm256_setzero_si256();
  const __m256 minus_infinity = _mm256_set1_ps(-INFINITY);
  const __m256 drop_lo = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(bytes), zero));
  const __m256 drop_hi = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), zero));
  return {_mm256_blendv_ps(a.lo, minus_infinity, drop_lo), _mm256_blendv_ps(a.hi, minus_infinity, drop_hi)};
}
inline __m256 keep_lanes(__m256 a, __m256i lane, int begin, int end) {
  const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane);
  const __m256i inside = _mm256_andnot_si256(before, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
  return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), a, _mm256_castsi256_ps(inside));
}
inline f32x16 keep_lanes(f32x16 a, int begin, int end) {
  return {keep_lanes(a.lo, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), begin, end),
          keep_lanes(a.hi, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15), begin, end)};
}
inline uint32_t at_least(f32x16 a, f32x16 border) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, border.lo, _CMP_GE_OQ)) |
                               _mm256_movemask_ps(_mm256_cmp_ps(a.hi, border.hi, _CMP_GE_OQ)) << 8);
}
inline int store_chosen(float* p, f32x16 a, uint32_t lanes) {
  alignas(32) float all[16];
  store_f32(all, a);
  int count = 0;
  for (; lanes; lanes &= lanes - 1) p[count++] = all[__builtin_ctz(lanes)];
  return count;
}
inline f32x16 last_bits_as_exponent(f32x16 a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.lo), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.hi), 23))};
}
inline float reduce_add(f32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(f32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline i32x16 set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline i32x16 add(i32x16 a, i32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline i32x16 shift_left(i32x16 a, int bits) { return {_mm256_slli_epi32(a.lo, bits), _mm256_slli_epi32(a.hi, bits)}; }
inline i32x16 shift_right(i32x16 a, int bits) { return {_mm256_srai_epi32(a.lo, bits), _mm256_srai_epi32(a.hi, bits)}; }
inline i32x16 bit_and(i32x16 a, int32_t mask) {
  const __m256i bits = _mm256_set1_epi32(mask);
  return {_mm256_and_si256(a.lo, bits), _mm256_and_si256(a.hi, bits)};
}
inline int32_t reduce_add(i32x16 a) {
  const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline i32x16 mul_i16(i32x16 a, i32x16 b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline f32x16 to_f32(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline i32x16 to_i32(f32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }

inline f32x16 load_as_f32(const float* p) { return load_f32(p); }
inline f32x16 load_as_f32(const uint16_t* bf16) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
  const __m256i lo = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(bits));
  const __m256i hi = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(bits, 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
inline f32x16 load_as_f32(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

inline __m256i bf16_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
inline void store_bf16(uint16_t* p, f32x16 a) {
  const __m256i packed = _mm256_packus_epi32(bf16_bits(a.lo), bf16_bits(a.hi));  // interleaves 128-bit halves
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void store_s8(int8_t* p, i32x16 a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
// Two vectors' words, lane by lane: a[0..3], a[8..11], b[0..3], b[8..11], and 4 further on the same.
inline void store_words(int8_t* p, __m256i a, __m256i b) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order));
}
inline void store_digits(int8_t* high, int8_t* low, const i32x16 (&number)[4]) {
  const __m256i mask = _mm256_set1_epi16(127);
  for (int i = 0; i < 4; i += 2) {
    const __m256i a = _mm256_packs_epi32(number[i].lo, number[i].hi);
    const __m256i b = _mm256_packs_epi32(number[i + 1].lo, number[i + 1].hi);
    store_words(high + 16 * i, _mm256_srli_epi16(a, 7), _mm256_srli_epi16(b, 7));
    store_words(low + 16 * i, _mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
  }
}
inline f32x16 load_as_f32(const layout::float16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
}
inline void store_f16(layout::float16* p, f32x16 a) {
  auto* halves = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(halves, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline i32x16 load_as_i32(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}

struct u8x64 {
  __m256i lo, hi;
};
inline u8x64 load_u8(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline u8x64 low_nibbles(u8x64 a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
inline u8x64 high_nibbles(u8x64 a) { return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)}); }
inline i32x16 byte_of(u8x64 a, int j) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_and_si256(_mm256_srli_epi32(a.lo, 8 * j), mask),
          _mm256_and_si256(_mm256_srli_epi32(a.hi, 8 * j), mask)};
}

#ifdef TORCH_CPULLM_AVXVNNI
inline i32x16 dot4_start(i32x16 minus_act_sum) { return shift_left(minus_act_sum, 7); }
#else
inline i32x16 dot4_start(i32x16) { return set1_i32(0); }  // the 128 is taken off inside
#endif
inline __m256i dot4(__m256i acc, __m256i weight_u8, __m256i activation_s8) {
#ifdef TORCH_CPULLM_AVXVNNI
  return _mm256_dpbusd_avx_epi32(acc, weight_u8, activation_s8);
#else
  // maddubs adds two products in 16 bits: 255 * 127 * 2 would saturate. With the offset taken off the weight again,
  // |weight| <= 127 and 127 * 127 * 2 = 32258 fits; the activation takes over the weight's sign.
  const __m256i weight_s8 = _mm256_xor_si256(weight_u8, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i magnitude = _mm256_abs_epi8(weight_s8);
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(activation_s8, weight_s8));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
inline i32x16 dot4(i32x16 acc, u8x64 weight, i32x16 four) {
  return {dot4(acc.lo, weight.lo, four.lo), dot4(acc.hi, weight.hi, four.hi)};
}
inline __m256i dot4_small(__m256i acc, __m256i weight_u8, __m256i activation_s8) {
#ifdef TORCH_CPULLM_AVXVNNI
  return _mm256_dpbusd_avx_epi32(acc, weight_u8, activation_s8);
#else
  const __m256i pairs = _mm256_maddubs_epi16(weight_u8, activation_s8);  // 15 * 127 * 2 = 3810: far from 16 bits
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
inline i32x16 dot4_small(i32x16 acc, u8x64 weight, i32x16 four) {
  return {dot4_small(acc.lo, weight.lo, four.lo), dot4_small(acc.hi, weight.hi, four.hi)};
}

struct bf16x32 {
  __m256i lo, hi;
};
inline bf16x32 load_bf16(const uint8_t* p) {
  const u8x64 bytes = load_u8(p);
  return {bytes.lo, bytes.hi};
}
inline void store_bf16_pairs(uint8_t* p, f32x16 even, f32x16 odd) {
  const __m256i lo = _mm256_or_si256(bf16_bits(even.lo), _mm256_slli_epi32(bf16_bits(odd.lo), 16));
  const __m256i hi = _mm256_or_si256(bf16_bits(even.hi), _mm256_slli_epi32(bf16_bits(odd.hi), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), hi);
}
inline __m256 dot2(__m256 acc, __m256i weight_pairs, __m256i pair) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(weight_pairs, 16)),
                        _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)), acc);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(weight_pairs, high)),
                         _mm256_castsi256_ps(_mm256_and_si256(pair, high)), acc);
}
inline f32x16 dot2(f32x16 acc, bf16x32 weight, i32x16 pair) {
  return {dot2(acc.lo, weight.lo, pair.lo), dot2(acc.hi, weight.hi, pair.hi)};
}

}  // namespace
}  // namespace torch_cpullm
