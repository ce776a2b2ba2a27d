// The row kernels, written once against the lanes of isa/*.h; each ISA file includes this inside its target region.
#pragma once
#include "isa/math.h"
#include "isa/tail.h"
#include "kernels/rowwise/norm_body.h"
#include "kernels/rowwise/rowwise.h"

namespace torch_cpullm {
namespace {

using layout::Format;
using layout::kPageTokens;

void add_rows(const float* a, layout::ConstElements b, int64_t n, layout::Elements out) {
  with_type(out, [&]<class T>(T* to) {
    const T* from = static_cast<const T*>(b.data);
    for_lanes(n, [&](int64_t i, auto lanes) { lanes.store(to + i, add(lanes.load(a + i), lanes.load(from + i))); });
  });
}

// Bytes that parts are fetched ahead: 16 lines, as many as a core has in flight. Lines that another core has just
// written come in 100 ns and more, and the hardware does not run ahead of them: 64 KiB of bf16 took 22 us without, 12
// us with.
constexpr int64_t kAheadInParts = 1024;

template <class From, class To>
inline void sum_as(const std::byte* const* part, int parts, const To* residual, int64_t begin, int64_t end, To* to) {
  for_lanes(end - begin, [&](int64_t offset, auto lanes) {
    const int64_t i = begin + offset;
    const auto load = [&](int p) {
      const From* from = reinterpret_cast<const From*>(part[p]) + i;
      __builtin_prefetch(reinterpret_cast<const char*>(from) + kAheadInParts);
      return lanes.load(from);
    };
    f32x16 sum = load(0);
    for (int p = 1; p < parts; ++p) sum = add(sum, load(p));
    lanes.store(to + i, residual ? add(lanes.load(residual + i), sum) : sum);
  });
}

void sum_parts(const std::byte* const* part, int parts, layout::Element type, layout::ConstElements residual,
               int64_t begin, int64_t end, layout::Elements out) {
  with_type(out, [&]<class To>(To* to) {
    with_type(layout::ConstElements{nullptr, type}, [&]<class From>(const From*) {
      sum_as<From>(part, parts, static_cast<const To*>(residual.data), begin, end, to);
    });
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

// Zero for an all-zero or poisoned group, and where 1 / scale would come near overflow (absmax below 2^-115: the codes
// are 0).
inline float inverse_of(float scale) { return scale > 1e-37f ? 1.0f / scale : 0.0f; }

// Clamped to [-127, 127], then rounded; NaN becomes 127, because min returns its second operand.
inline i32x16 code_of(f32x16 x, f32x16 inverse) {
  return to_i32(max(min(mul(x, inverse), set1_f32(127.0f)), set1_f32(-127.0f)));
}

// The row as it is, or times a multiplier: body(source) with source.load(offset, lanes).
template <class T>
struct Plain {
  const T* x;
  template <class Lanes>
  f32x16 load(int64_t i, Lanes lanes) const {
    return lanes.load(x + i);
  }
};
template <class T>
struct Multiplied {
  const T* x;
  const float* multiplier;
  template <class Lanes>
  f32x16 load(int64_t i, Lanes lanes) const {
    return mul(lanes.load(x + i), lanes.load(multiplier + i));
  }
};
template <class Body>
inline void with_source(layout::ConstElements elements, const float* multiplier, const Body& body) {
  with_type(elements, [&]<class T>(const T* x) {
    if (multiplier) return body(Multiplied<T>{x, multiplier});
    body(Plain<T>{x});
  });
}

// For each block of the row: body(first k, width, block index), after its 256 bytes were zeroed where they will not be
// filled.
template <class Body>
inline void for_blocks(int64_t n, layout::Codes codes, const kernels::ActRow& out, const Body& body) {
  const int64_t depth = layout::block_depth(codes);
  for (int64_t first = 0, block = 0; first < n; first += depth, ++block) {
    const int64_t width = first + depth < n ? depth : n - first;
    uint8_t* values = out.values + block * out.rows * layout::kActBytes;
    if (width < depth) std::memset(values, 0, layout::kActBytes);
    body(first, width, block, values);
  }
}

void act_f32(layout::ConstElements x, const float* multiplier, int64_t n, const kernels::ActRow& out) {
  with_source(x, multiplier, [&](auto source) {
    for_blocks(n, layout::Codes::f32, out, [&](int64_t first, int64_t width, int64_t, uint8_t* values) {
      for_lanes(width, [&](int64_t i, auto lanes) {
        lanes.store(reinterpret_cast<float*>(values) + i, source.load(first + i, lanes));
      });
    });
  });
}

void act_bf16(layout::ConstElements x, const float* multiplier, int64_t n, const kernels::ActRow& out) {
  with_source(x, multiplier, [&](auto source) {
    for_blocks(n, layout::Codes::bf16, out, [&](int64_t first, int64_t width, int64_t, uint8_t* values) {
      for_lanes(width, [&](int64_t i, auto lanes) {
        store_bf16(reinterpret_cast<uint16_t*>(values) + i, source.load(first + i, lanes));
      });
    });
  });
}

void act_s8(layout::ConstElements x, const float* multiplier, int64_t n, const kernels::ActRow& out) {
  with_source(x, multiplier, [&](auto source) {
    for_blocks(n, layout::Codes::int8, out, [&](int64_t first, int64_t width, int64_t block, uint8_t* values) {
      f32x16 largest = zero_f32(), poison = zero_f32();
      for_lanes(width, [&](int64_t i, auto lanes) {
        const f32x16 a = source.load(first + i, lanes);
        largest = max(abs(a), largest);
        poison = fma(a, zero_f32(), poison);
      });
      const float scale = reduce_max(largest) / 127.0f + reduce_add(poison);
      const f32x16 inverse = set1_f32(inverse_of(scale));
      out.scale[block * out.rows] = scale;
      const int64_t each = layout::kActivationGroup / out.sums;
      for (int64_t group = 0; group < out.sums; ++group) {
        const int64_t start = group * each, left = width - start;
        i32x16 sum = set1_i32(0);
        for_lanes(left < 0      ? 0
                  : left < each ? left
                                : each,
                  [&](int64_t i, auto lanes) {
                    const i32x16 codes = code_of(source.load(first + start + i, lanes), inverse);
                    store_s8(reinterpret_cast<int8_t*>(values) + start + i, codes);
                    sum = add(sum, codes);
                  });
        out.sum[block * out.rows * out.sums + group] = -reduce_add(sum);
      }
    });
  });
}

void rope(float* x, const float* cos, const float* sin, int64_t rotary) {
  const int64_t half = rotary / 2;
  for_lanes(half, [&](int64_t i, auto lanes) {
    const f32x16 low = lanes.load(x + i), high = lanes.load(x + half + i);
    lanes.store(x + i, fma(low, lanes.load(cos + i), sub(zero_f32(), mul(high, lanes.load(sin + i)))));
    lanes.store(x + half + i, fma(high, lanes.load(cos + half + i), mul(low, lanes.load(sin + half + i))));
  });
}

// One pair after the other: lanes of even and of odd channels would have to be taken apart and put together again. The
// fused multiply-add is that of the lanes.
void rope_pairs(float* x, const float* cos, const float* sin, int64_t rotary) {
  for (int64_t i = 0; i < rotary; i += 2) {
    const float even = x[i], odd = x[i + 1];
    x[i] = std::fma(even, cos[i], 0.0f - odd * sin[i]);
    x[i + 1] = std::fma(odd, cos[i + 1], even * sin[i + 1]);
  }
}

inline f32x16 gelu_tanh(f32x16 g) {
  const f32x16 cube = mul(mul(g, g), g);
  const f32x16 inner = mul(set1_f32(0.7978845608f), fma(set1_f32(0.044715f), cube, g));
  return mul(g, sigmoid(add(inner, inner)));  // (1 + tanh(u)) / 2 = sigmoid(2u)
}

inline f32x16 opened(kernels::Gate gate, f32x16 g) {
  if (gate == kernels::Gate::relu) return max(zero_f32(), g);  // the second operand where one is NaN
  return gate == kernels::Gate::silu ? mul(g, sigmoid(g)) : gelu_tanh(g);
}

void gated(const float* g, const float* up, kernels::Gate gate, int64_t n, float* out) {
  if (gate == kernels::Gate::gelu_erf) {  // libm's erf: exact, and rare enough (some GLU variants) not to need lanes
    for (int64_t i = 0; i < n; ++i) {
      const float value = 0.5f * g[i] * (1.0f + std::erf(g[i] * 0.70710678f));
      out[i] = up ? value * up[i] : value;
    }
    return;
  }
  for_lanes(n, [&](int64_t i, auto lanes) {
    const f32x16 value = opened(gate, lanes.load(g + i));
    lanes.store(out + i, up ? mul(value, lanes.load(up + i)) : value);
  });
}

template <Format kFormat, class Element, class Encode>
inline void kv_store_as(const float* key, const float* value, int64_t channels, uint8_t* head, int64_t slot,
                        const Encode& encode) {
  auto* keys = reinterpret_cast<Element*>(head);
  auto* values = keys + channels * kPageTokens;
  for (int64_t c = 0; c < channels; ++c)
    keys[layout::element_index(kFormat, c, slot, kPageTokens)] = static_cast<Element>(encode.key(key, c));
  for (int64_t c = 0; c < channels; ++c)
    values[layout::element_index(kFormat, slot, c, channels)] = static_cast<Element>(encode.value(value, c));
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
  int key(const float*, int64_t c) const { return key_codes[c] + 128; }
  int value(const float*, int64_t c) const { return value_codes[c] + 128; }
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
    kv_store_as<Format::int8, uint8_t>(key, value, channels, head, slot,
                                       CodeEncoder(key, key_absmax, value, value_absmax, channels));
  } else if (format == Format::bf16) {
    kv_store_as<Format::bf16, uint16_t>(key, value, channels, head, slot,
                                        FloatEncoder<uint16_t (*)(float)>{key_finite, value_finite, one_bf16});
  } else {
    const auto same = [](float x) { return x; };
    kv_store_as<Format::f32, float>(key, value, channels, head, slot,
                                    FloatEncoder<decltype(same)>{key_finite, value_finite, same});
  }
}

inline float widen(float x) { return x; }
inline float widen(uint8_t x) { return static_cast<float>(x - 128); }
inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

template <Format kFormat, class Element>
inline void kv_fetch_as(const uint8_t* head, int64_t channels, int64_t slot, float key_scale, float value_scale,
                        float* key, float* value) {
  const auto* keys = reinterpret_cast<const Element*>(head);
  const auto* values = keys + channels * kPageTokens;
  for (int64_t c = 0; c < channels; ++c)
    key[c] = widen(keys[layout::element_index(kFormat, c, slot, kPageTokens)]) * key_scale;
  for (int64_t c = 0; c < channels; ++c)
    value[c] = widen(values[layout::element_index(kFormat, slot, c, channels)]) * value_scale;
}

void kv_fetch(const uint8_t* head, int64_t channels, Format format, int64_t slot, float* key, float* value) {
  const float key_scale = reinterpret_cast<const float*>(head + layout::key_scale_offset(format, channels))[slot];
  const float value_scale = reinterpret_cast<const float*>(head + layout::value_scale_offset(format, channels))[slot];
  if (format == Format::int8)
    return kv_fetch_as<Format::int8, uint8_t>(head, channels, slot, key_scale, value_scale, key, value);
  if (format == Format::bf16)
    return kv_fetch_as<Format::bf16, uint16_t>(head, channels, slot, key_scale, value_scale, key, value);
  kv_fetch_as<Format::f32, float>(head, channels, slot, key_scale, value_scale, key, value);
}

}  // namespace
}  // namespace torch_cpullm
