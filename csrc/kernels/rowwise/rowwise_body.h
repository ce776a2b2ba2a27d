// The row kernels, written once against the lanes of isa/*.h; each ISA file includes this inside its target region.
#pragma once
#include "isa/math.h"
#include "kernels/rowwise/rowwise.h"

namespace torch_cpullm {
namespace {

using layout::Format;
using layout::kPageTokens;

struct WholeVector {
  f32x16 load(const float* p) const { return load_f32(p); }
  void store(float* p, f32x16 a) const { store_f32(p, a); }
};
struct PartOfVector {
  int count;
  f32x16 load(const float* p) const { return load_f32_tail(p, count); }
  void store(float* p, f32x16 a) const { store_f32_tail(p, a, count); }
};

// body(offset, lanes) for whole vectors, then for the tail: one text for both.
template <class Body>
inline void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) body(i, WholeVector{});
  if (i < n) body(i, PartOfVector{static_cast<int>(n - i)});
}

void rms_norm(const float* x, const float* weight, float offset, float eps, int64_t n, float* out) {
  f32x16 squares = zero_f32();
  for_lanes(n, [&](int64_t i, auto lanes) {
    const f32x16 a = lanes.load(x + i);
    squares = fma(a, a, squares);
  });
  const f32x16 inverse = set1_f32(1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(n) + eps));
  const f32x16 shift = set1_f32(offset);
  for_lanes(n, [&](int64_t i, auto lanes) {
    lanes.store(out + i, mul(mul(lanes.load(x + i), inverse), add(lanes.load(weight + i), shift)));
  });
}

// absmax / 127, or NaN when any value is not finite: x * 0 is NaN exactly then, and a sum keeps it.
inline float quantization_scale(const float* x, int64_t n) {
  f32x16 largest = zero_f32(), poison = zero_f32();
  for_lanes(n, [&](int64_t i, auto lanes) {
    const f32x16 a = lanes.load(x + i);
    largest = max(abs(a), largest);
    poison = fma(a, zero_f32(), poison);
  });
  return reduce_max(largest) / 127.0f + reduce_add(poison);
}

// Zero for an all-zero or poisoned group, and where 1 / scale would overflow (absmax below 2^-120: the codes are 0).
inline float inverse_of(float scale) { return scale > 1e-37f ? 1.0f / scale : 0.0f; }

// Rounded and clamped to [-127, 127]; NaN becomes a number, because max returns its second operand.
inline f32x16 code_of(f32x16 x, f32x16 inverse) {
  const f32x16 code = round_even(mul(x, inverse));
  return max(min(code, set1_f32(127.0f)), set1_f32(-127.0f));
}

void quantize_s8(const float* x, int64_t n, int8_t* codes, float* scale, int32_t* sum) {
  for (int64_t first = 0, group = 0; first < n; first += layout::kActivationGroup, ++group) {
    const int64_t width = first + layout::kActivationGroup < n ? layout::kActivationGroup : n - first;
    scale[group] = quantization_scale(x + first, width);
    const f32x16 inverse = set1_f32(inverse_of(scale[group]));
    int32_t total = 0;
    for_lanes(width, [&](int64_t i, auto lanes) {
      total += store_s8(codes + first + i, code_of(lanes.load(x + first + i), inverse));
    });
    sum[group] = total;
  }
  for (int64_t i = layout::round_up(n, 16); i < layout::round_up(n, 64); ++i) codes[i] = 0;
}

void to_bf16(const float* x, int64_t n, uint16_t* out) {
  for_lanes(n, [&](int64_t i, auto lanes) { store_bf16(out + i, lanes.load(x + i)); });
  for (int64_t i = layout::round_up(n, 16); i < layout::round_up(n, 64); ++i) out[i] = 0;
}

void rope(float* x, const float* cos, const float* sin, int64_t rotary) {
  const int64_t half = rotary / 2;
  for_lanes(half, [&](int64_t i, auto lanes) {
    const f32x16 low = lanes.load(x + i), high = lanes.load(x + half + i);
    lanes.store(x + i, fma(low, lanes.load(cos + i), sub(zero_f32(), mul(high, lanes.load(sin + i)))));
    lanes.store(x + half + i, fma(high, lanes.load(cos + half + i), mul(low, lanes.load(sin + half + i))));
  });
}

inline f32x16 gelu_tanh(f32x16 g) {
  const f32x16 cube = mul(mul(g, g), g);
  const f32x16 inner = mul(set1_f32(0.7978845608f), fma(set1_f32(0.044715f), cube, g));
  return mul(g, sigmoid(add(inner, inner)));  // (1 + tanh(u)) / 2 = sigmoid(2u)
}

void gated(const float* g, const float* up, kernels::Gate gate, int64_t n, float* out) {
  if (gate == kernels::Gate::gelu_erf) {  // libm's erf: exact, and rare enough (some GLU variants) not to need lanes
    for (int64_t i = 0; i < n; ++i) out[i] = 0.5f * g[i] * (1.0f + std::erf(g[i] * 0.70710678f)) * up[i];
    return;
  }
  for_lanes(n, [&](int64_t i, auto lanes) {
    const f32x16 x = lanes.load(g + i);
    const f32x16 opened = gate == kernels::Gate::silu ? mul(x, sigmoid(x)) : gelu_tanh(x);
    lanes.store(out + i, mul(opened, lanes.load(up + i)));
  });
}

template <class Element, class Encode>
inline void kv_store_as(const float* key, const float* value, int64_t channels, uint8_t* head, int64_t slot,
                        const Encode& encode) {
  auto* keys = reinterpret_cast<Element*>(head);
  auto* values = keys + channels * kPageTokens;
  for (int64_t c = 0; c < channels; ++c) keys[c * kPageTokens + slot] = encode.key(key, c);
  for (int64_t c = 0; c < channels; ++c) values[slot * channels + c] = encode.value(value, c);
}

template <class Convert>
struct FloatEncoder {
  bool key_finite, value_finite;
  Convert convert;
  auto key(const float* x, int64_t c) const { return convert(key_finite ? x[c] : 0.0f); }
  auto value(const float* x, int64_t c) const { return convert(value_finite ? x[c] : 0.0f); }
};

struct CodeEncoder {
  int8_t key_codes[layout::kMaxHeadChannels], value_codes[layout::kMaxHeadChannels];
  CodeEncoder(const float* key, float key_scale, const float* value, float value_scale, int64_t channels) {
    const f32x16 key_inverse = set1_f32(inverse_of(key_scale)), value_inverse = set1_f32(inverse_of(value_scale));
    for (int64_t c = 0; c < channels; c += 16) {  // channels is a multiple of 16
      store_s8(key_codes + c, code_of(load_f32(key + c), key_inverse));
      store_s8(value_codes + c, code_of(load_f32(value + c), value_inverse));
    }
  }
  int8_t key(const float*, int64_t c) const { return key_codes[c]; }
  int8_t value(const float*, int64_t c) const { return value_codes[c]; }
};

inline uint16_t one_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // never NaN here
}

void kv_store(const float* key, const float* value, int64_t channels, Format format, uint8_t* head, int64_t slot) {
  const float key_absmax = quantization_scale(key, channels), value_absmax = quantization_scale(value, channels);
  const bool key_finite = key_absmax == key_absmax, value_finite = value_absmax == value_absmax;
  auto* key_scale = reinterpret_cast<float*>(head + layout::key_scale_offset(format, channels));
  auto* value_scale = reinterpret_cast<float*>(head + layout::value_scale_offset(format, channels));
  const bool is_code = format == Format::int8;
  key_scale[slot] = is_code || !key_finite ? key_absmax : 1.0f;
  value_scale[slot] = is_code || !value_finite ? value_absmax : 1.0f;
  if (is_code) {
    kv_store_as<int8_t>(key, value, channels, head, slot, CodeEncoder(key, key_absmax, value, value_absmax, channels));
  } else if (format == Format::bf16) {
    kv_store_as<uint16_t>(key, value, channels, head, slot,
                          FloatEncoder<uint16_t (*)(float)>{key_finite, value_finite, one_bf16});
  } else {
    const auto same = [](float x) { return x; };
    kv_store_as<float>(key, value, channels, head, slot, FloatEncoder<decltype(same)>{key_finite, value_finite, same});
  }
}

inline float widen(float x) { return x; }
inline float widen(int8_t x) { return x; }
inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

template <class Element>
inline void kv_fetch_as(const uint8_t* head, int64_t channels, int64_t slot, float key_scale, float value_scale,
                        float* key, float* value) {
  const auto* keys = reinterpret_cast<const Element*>(head);
  const auto* values = keys + channels * kPageTokens;
  for (int64_t c = 0; c < channels; ++c) key[c] = widen(keys[c * kPageTokens + slot]) * key_scale;
  for (int64_t c = 0; c < channels; ++c) value[c] = widen(values[slot * channels + c]) * value_scale;
}

void kv_fetch(const uint8_t* head, int64_t channels, Format format, int64_t slot, float* key, float* value) {
  const float key_scale = reinterpret_cast<const float*>(head + layout::key_scale_offset(format, channels))[slot];
  const float value_scale = reinterpret_cast<const float*>(head + layout::value_scale_offset(format, channels))[slot];
  if (format == Format::int8) return kv_fetch_as<int8_t>(head, channels, slot, key_scale, value_scale, key, value);
  if (format == Format::bf16) return kv_fetch_as<uint16_t>(head, channels, slot, key_scale, value_scale, key, value);
  kv_fetch_as<float>(head, channels, slot, key_scale, value_scale, key, value);
}

}  // namespace
}  // namespace torch_cpullm
