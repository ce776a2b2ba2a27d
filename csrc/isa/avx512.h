// Sixteen lanes as one zmm register. Include after the file's own includes: the rest of the file is compiled for the
// features below. TORCH_CPULLM_AVX512VNNI or TORCH_CPULLM_AVX512BF16, defined before the include, add one instruction
// each; feature sets are not nested (Ice Lake has VNNI without BF16, Cooper Lake both, Skylake-X none).
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics start from a variable initialised with itself; the warning points into its header.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "layout/float16.h"

#define TORCH_CPULLM_AVX512_BASE "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#if defined(TORCH_CPULLM_AVX512VNNI)
#define TORCH_CPULLM_LANES "avx512vnni"
#define TORCH_CPULLM_TARGET TORCH_CPULLM_AVX512_BASE ",avx512vnni"
#elif defined(TORCH_CPULLM_AVX512BF16)
#define TORCH_CPULLM_LANES "avx512bf16"
#define TORCH_CPULLM_TARGET TORCH_CPULLM_AVX512_BASE ",avx512bf16"
#elif defined(TORCH_CPULLM_AMX)
#define TORCH_CPULLM_LANES "amx"
#define TORCH_CPULLM_TARGET TORCH_CPULLM_AVX512_BASE ",amx-tile,amx-int8,amx-bf16"
#else
#define TORCH_CPULLM_LANES "avx512"
#define TORCH_CPULLM_TARGET TORCH_CPULLM_AVX512_BASE
#endif
#include "isa/region.h"

namespace torch_cpullm {
namespace {

// 32 zmm registers. Streaming: 24 rows x 16 columns = 24 accumulators + 1 weight + 1 broadcast. Grouped: 12 rows, 12 +
// 12 accumulators + 2 nibbles + scale + broadcast. Wide, for many rows: 12 x 32 columns = 24 sums + 2 weights + 1
// broadcast: 14 loads for 24 products; grouped 6 x 32.
constexpr int kLinearStreamRows = 16;
constexpr int kLinearGroupRows = 12;
constexpr int kLinearWideRows = 12;
constexpr int kLinearWideGroupRows = 6;
constexpr int kLinearWideFrom = 17;  // rows; measured, kernels/linear/README.md
// Sums of an attention tile; up to 4 lines and 2 broadcasts beside them.
constexpr int kAttentionSums = 24;

using f32x16 = __m512;
using i32x16 = __m512i;

inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }

inline f32x16 zero_f32() { return _mm512_setzero_ps(); }
inline f32x16 set1_f32(float x) { return _mm512_set1_ps(x); }
inline f32x16 load_f32(const float* p) { return _mm512_loadu_ps(p); }
inline f32x16 load_f32_tail(const float* p, int count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }
inline void store_f32(float* p, f32x16 a) { _mm512_storeu_ps(p, a); }
inline void store_f32_tail(float* p, f32x16 a, int count) { _mm512_mask_storeu_ps(p, first_lanes(count), a); }
inline f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
inline f32x16 sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
inline f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
inline f32x16 div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
inline f32x16 max(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
inline f32x16 min(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
inline f32x16 abs(f32x16 a) { return _mm512_abs_ps(a); }
inline f32x16 round_even(f32x16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline f32x16 select_less(f32x16 x, f32x16 limit, f32x16 then, f32x16 otherwise) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), otherwise, then);
}
inline f32x16 zero_where_zero(f32x16 p, f32x16 otherwise) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(p, _mm512_setzero_ps(), _CMP_NEQ_UQ), otherwise);
}
inline f32x16 mask_bytes(f32x16 a, const uint8_t* keep) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keep));
  return _mm512_mask_blend_ps(_mm_test_epi8_mask(bytes, bytes), _mm512_set1_ps(-INFINITY), a);
}
inline f32x16 keep_lanes(f32x16 a, int begin, int end) {
  const auto kept = static_cast<__mmask16>(first_lanes(end) & ~first_lanes(begin));
  return _mm512_mask_blend_ps(kept, _mm512_set1_ps(-INFINITY), a);
}
inline uint32_t at_least(f32x16 a, f32x16 border) { return _mm512_cmp_ps_mask(a, border, _CMP_GE_OQ); }
// Squeezed in the register and stored whole: with a memory operand vcompressps is microcode on some CPUs.
inline int store_chosen(float* p, f32x16 a, uint32_t lanes) {
  store_f32(p, _mm512_maskz_compress_ps(static_cast<__mmask16>(lanes), a));
  return __builtin_popcount(lanes);
}
inline f32x16 last_bits_as_exponent(f32x16 a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}
inline float reduce_add(f32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(f32x16 a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline i32x16 set1_i32(int32_t x) { return _mm512_set1_epi32(x); }
inline i32x16 add(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
inline i32x16 shift_left(i32x16 a, int bits) { return _mm512_slli_epi32(a, static_cast<unsigned>(bits)); }
inline i32x16 shift_right(i32x16 a, int bits) { return _mm512_srai_epi32(a, static_cast<unsigned>(bits)); }
inline i32x16 bit_and(i32x16 a, int32_t mask) { return _mm512_and_si512(a, _mm512_set1_epi32(mask)); }
inline int32_t reduce_add(i32x16 a) { return _mm512_reduce_add_epi32(a); }
inline i32x16 mul_i16(i32x16 a, i32x16 b) { return _mm512_mullo_epi32(a, b); }
inline f32x16 to_f32(i32x16 a) { return _mm512_cvtepi32_ps(a); }
inline i32x16 to_i32(f32x16 a) { return _mm512_cvtps_epi32(a); }

inline f32x16 load_as_f32(const float* p) { return _mm512_loadu_ps(p); }
inline f32x16 load_as_f32(const uint16_t* bf16) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline f32x16 load_as_f32(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline f32x16 load_as_f32(const layout::float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_f16(layout::float16* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
inline i32x16 load_as_i32(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// By hand and not with vcvtneps2bf16: that one flushes denormals, and needs another feature.
inline __m512i bf16_bits(f32x16 a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_srli_epi32(_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), rounded, quiet), 16);
}
inline void store_bf16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
inline void store_s8(int8_t* p, i32x16 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a)); }

// Sixty-four words in the order that packing leaves, group j of four in lane l of vector j.
inline void store_words(int8_t* p, __m512i a, __m512i b) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b)));
}
inline void store_digits(int8_t* high, int8_t* low, const i32x16 (&number)[4]) {
  const __m512i mask = _mm512_set1_epi16(127);
  const __m512i a = _mm512_packs_epi32(number[0], number[1]), b = _mm512_packs_epi32(number[2], number[3]);
  store_words(high, _mm512_srli_epi16(a, 7), _mm512_srli_epi16(b, 7));
  store_words(low, _mm512_and_si512(a, mask), _mm512_and_si512(b, mask));
}

using u8x64 = __m512i;
inline u8x64 load_u8(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_u8(uint8_t* p, u8x64 a) { _mm512_storeu_si512(p, a); }
inline u8x64 low_nibbles(u8x64 a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline u8x64 high_nibbles(u8x64 a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
inline i32x16 byte_of(u8x64 a, int j) {
  return _mm512_and_si512(_mm512_srli_epi32(a, static_cast<unsigned>(8 * j)), _mm512_set1_epi32(255));
}

// Both dot products in assembly: for the intrinsics GCC 12 copies the accumulator before and after every instruction
// and spills a 6 x 4 tile (67 moves and 56 stack accesses in the inner loop; with "+v" none).
inline i32x16 dot4_start(i32x16 minus_act_sum) { return shift_left(minus_act_sum, 7); }
#ifdef TORCH_CPULLM_AVX512VNNI
inline i32x16 dot4(i32x16 acc, u8x64 weight, i32x16 four) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weight), "v"(four));
  return acc;
}
inline i32x16 dot4_small(i32x16 acc, u8x64 weight, i32x16 four) { return dot4(acc, weight, four); }
#endif

using bf16x32 = __m512i;
inline bf16x32 load_bf16(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_bf16_pairs(uint8_t* p, f32x16 even, f32x16 odd) {
  _mm512_storeu_si512(p, _mm512_or_si512(bf16_bits(even), _mm512_slli_epi32(bf16_bits(odd), 16)));
}
inline f32x16 dot2(f32x16 acc, bf16x32 weight, i32x16 pair) {
#ifdef TORCH_CPULLM_AVX512BF16
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(weight), "v"(pair));
  return acc;
#else
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(weight, 16)),
                        _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)), acc);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(weight, high)),
                         _mm512_castsi512_ps(_mm512_and_si512(pair, high)), acc);
#endif
}

}  // namespace
}  // namespace torch_cpullm
