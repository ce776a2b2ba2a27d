// IEEE half precision, as weight scales are stored: 11 bits of mantissa, 2^-24 to 65504.
#pragma once
#include <cstdint>
#include <cstring>

namespace torch_cpullm::layout {

enum class float16 : uint16_t {};

inline float to_float(float16 half) {
  const uint32_t bits = static_cast<uint32_t>(half), sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  uint32_t word;
  if (rest >= 0x7c00u) {
    word = sign | 0x7f800000u | (rest & 0x3ffu) << 13;  // Inf and NaN
    if (rest > 0x7c00u) word |= 0x400000u;              // quiet, as the instruction makes it
  } else if (rest < 0x400u) {
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // exact: denormals are multiples of 2^-24
    std::memcpy(&word, &magnitude, sizeof word);
    word |= sign;
  } else {
    word = sign | ((rest << 13) + 0x38000000u);
  }
  float out;
  std::memcpy(&out, &word, sizeof out);
  return out;
}

// Ties to even; NaN stays NaN, and what is above 65504 becomes Inf.
inline float16 to_float16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<float16>(sign | 0x7e00u);
  if (rest >= 0x47800000u) return static_cast<float16>(sign | 0x7c00u);  // 65536 and more
  if (rest < 0x38800000u) {                                              // below 2^-14: a denormal half
    float magnitude;
    std::memcpy(&magnitude, &rest, sizeof magnitude);
    magnitude += 0.5f;  // ulp(0.5) = 2^-24: the addition itself rounds to a multiple of it, ties to even
    uint32_t rounded;
    std::memcpy(&rounded, &magnitude, sizeof rounded);
    return static_cast<float16>(sign | (rounded - 0x3f000000u));
  }
  const uint32_t even = (rest >> 13) & 1u;
  return static_cast<float16>(sign | ((rest - 0x38000000u + 0xfffu + even) >> 13));
}

}  // namespace torch_cpullm::layout
