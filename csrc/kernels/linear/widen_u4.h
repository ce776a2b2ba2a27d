// Symmetric int4 codes times the multipliers of their groups, as bytes. Included by ISA files inside their target
// region, after isa/avx512.h.
//
// The nibble u of a column with multiplier m stands for (u - 8) * m, in -120..120. As 16-bit words, bytes are
// multiplied two at a time, as long as no product of the lower one carries over; so the sign is moved into the nibble
// first:
//
//   m >= 0   u * |m| - 8 * |m|                 u * |m| and (15 - u) * |m| <= 225 < 256
//   m < 0    (15 - u) * |m| - 7 * |m|          15 - u = u ^ 15
#pragma once
#include <bit>

#include "kernels/linear/linear.h"

namespace torch_cpullm {
namespace {

// Of 16 columns: what the formula above needs, in each of a column's four bytes.
struct ColumnFactors {
  __m512i flip;    // 15 where m < 0
  __m512i factor;  // |m|, in words
  __m512i offset;  // what is taken off
};

// The results are `above` higher, modulo 256: 0 for signed bytes, 128 for unsigned ones.
inline ColumnFactors column_factors(const int8_t* multipliers, int above) {
  const __m512i in_each_byte = _mm512_set1_epi32(0x01010101);
  const __m512i m = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(multipliers)));
  const __m512i bytes = _mm512_mullo_epi32(_mm512_abs_epi32(m), in_each_byte), negative = _mm512_srai_epi32(m, 31);
  const __m512i eight = _mm512_slli_epi32(bytes, 3);  // <= 120: no bit leaves its byte
  const __m512i offset = _mm512_sub_epi8(eight, _mm512_and_si512(negative, bytes));
  return {_mm512_and_si512(negative, _mm512_set1_epi8(15)), _mm512_and_si512(bytes, _mm512_set1_epi16(255)),
          _mm512_sub_epi8(offset, _mm512_set1_epi8(static_cast<char>(above)))};
}

inline __m512i times(__m512i nibbles, const ColumnFactors& f) {
  return _mm512_sub_epi8(_mm512_mullo_epi16(_mm512_xor_si512(nibbles, f.flip), f.factor), f.offset);
}

// A block's codes as bytes, strips `next` bytes apart: 32 k at a time, since no group is smaller.
inline void widen_u4_block(const uint8_t* block, const layout::WeightFormat& format, const layout::BlockPlace& place,
                           int above, uint8_t* to, int64_t next) {
  constexpr int64_t kDepth = 32, kLines = kDepth / 8;
  const int64_t lines = layout::lines_offset(format, place.depth);
  const int shift = std::countr_zero(static_cast<uint32_t>(format.group));
  for (int64_t strip = 0; strip < layout::kStrips; ++strip, block += place.strip, to += next) {
    const uint8_t* line = block + lines;
    uint8_t* out = to;
    for (int64_t k = 0; k < place.depth; k += kDepth) {
      const uint8_t* multipliers = block + layout::kMultipliersOffset + (k >> shift) * layout::kStripColumns;
      const ColumnFactors factors = column_factors(reinterpret_cast<const int8_t*>(multipliers), above);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLines; ++i, line += layout::kLineBytes, out += 2 * layout::kLineBytes) {
        const u8x64 both = load_u8(line);
        store_u8(out, times(low_nibbles(both), factors));
        store_u8(out + layout::kLineBytes, times(high_nibbles(both), factors));
      }
    }
  }
}

}  // namespace
}  // namespace torch_cpullm
