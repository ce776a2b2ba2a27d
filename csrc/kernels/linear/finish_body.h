// What follows the sums: scales, bias and residual; and weights rounded to bf16 for bf16 activations. Included by ISA
// files inside their target region.
#pragma once
#include "isa/tail.h"
#include "kernels/linear/linear.h"

namespace torch_cpullm {
namespace {

template <class T, class R>
void finish_rows(const kernels::LinearFinish& f, T* to, const R* added) {
  for (int64_t r = 0; r < f.rows; ++r) {
    const float* c = f.c + r * layout::kPanelColumns;
    const R* residual = added ? added + r * f.stride : nullptr;
    for_lanes(f.width, [&](int64_t n, auto lanes) {
      f32x16 value = lanes.load(c + n);
      if (f.column_scale) value = mul(value, lanes.load(f.column_scale + n));
      if (f.bias) value = add(value, lanes.load(f.bias + n));
      if (residual) value = add(value, lanes.load(residual + n));
      lanes.store(to + r * f.stride + n, value);
    });
  }
}

void linear_finish(const kernels::LinearFinish& f) {
  with_type(f.out, [&](auto* to) { with_type(f.add, [&](const auto* added) { finish_rows(f, to, added); }); });
}

// code - offset, times the group's scale where there is one.
struct Expand {
  i32x16 offset;
  bool scaled;
  f32x16 scale;

  f32x16 operator()(u8x64 bytes, int j) const {
    const f32x16 value = to_f32(add(byte_of(bytes, j), offset));
    return scaled ? mul(value, scale) : value;
  }
};

// Exact for two levels as well: 11 bits times 4.
inline f32x16 group_scale(const uint8_t* strip, const layout::WeightFormat& format, int64_t entry) {
  const auto* halves = reinterpret_cast<const layout::float16*>(strip);
  if (!layout::has_two_levels(format)) return load_as_f32(halves + entry);
  const auto* multipliers = reinterpret_cast<const int8_t*>(strip + layout::kMultipliersOffset);
  return mul(load_as_f32(halves), load_as_f32(multipliers + entry));
}

void linear_expand(const uint8_t* block, const layout::WeightFormat& format, int64_t depth, uint8_t* out) {
  const layout::WeightFormat bf16{layout::Codes::bf16, layout::Activation::bf16, false, 0};
  const int64_t strip_bytes = layout::strip_bytes(format, depth), per_line = layout::depth_per_line(format.codes);
  const bool nibbles = format.codes == layout::Codes::int4;
  for (int64_t strip = 0; strip < layout::kStrips; ++strip) {
    const uint8_t* weight = block + strip * strip_bytes;
    const uint8_t* lines = weight + layout::lines_offset(format, depth);
    const uint8_t* zeros = weight + layout::zeros_offset(format, depth);
    for (int64_t k = 0; k < depth; k += per_line) {
      const layout::BlockPlace half = layout::block_place(bf16, depth, k / layout::block_depth(bf16.codes));
      uint8_t* target = out + half.offset + strip * half.strip + (k - half.first) / 2 * layout::kLineBytes;
      const int64_t entry = format.group ? k / format.group * layout::kStripColumns : 0;
      Expand value{set1_i32(nibbles ? -8 : -128), format.group != 0, zero_f32()};
      if (format.asymmetric) value.offset = mul_i16(load_as_i32(zeros + entry), set1_i32(-1));
      if (format.group) value.scale = group_scale(weight, format, entry);
      const u8x64 line = load_u8(lines + k / per_line * layout::kLineBytes);
      const u8x64 first = nibbles ? low_nibbles(line) : line;
      store_bf16_pairs(target, value(first, 0), value(first, 1));
      store_bf16_pairs(target + layout::kLineBytes, value(first, 2), value(first, 3));
      if (!nibbles) continue;
      const u8x64 second = high_nibbles(line);
      store_bf16_pairs(target + 2 * layout::kLineBytes, value(second, 0), value(second, 1));
      store_bf16_pairs(target + 3 * layout::kLineBytes, value(second, 2), value(second, 3));
    }
  }
}

}  // namespace
}  // namespace torch_cpullm
