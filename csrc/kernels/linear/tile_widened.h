// Where many rows pass over a block of int4, its nibbles become bytes once: for each tile anew they would take 24 of
// 156 vector instructions a group of 32 (6 x 32 tiles: 96 products, 24 conversions and multiply-adds, 12 starts). With
// two levels of scales they are multiplied on the way, and what is left to do is int8's work.
#pragma once
#include "kernels/linear/linear_body.h"
#include "kernels/linear/widen_u4.h"

namespace torch_cpullm {
namespace {

template <>
struct WidenedTile<TileGrouped<GroupedU4>> {
  using Type = TileBytes<true>;

  static void widen(const uint8_t* block, const layout::WeightFormat& format, const layout::BlockPlace& place,
                    uint8_t* to) {
    widen_u4_block(block, format, place, 128, to, kWidenedStrip);
  }
};

// A line is one of int8 codes, with the offset of its own.
struct WidenedU4Zero : GroupedS8 {
  template <class I32>
  static I32 start(const Strip& s, int64_t v, int64_t group, int32_t act_sum) {
    return GroupedU4Zero::start<I32>(s, v, group, act_sum);
  }
};

template <>
struct WidenedTile<TileGrouped<GroupedU4Zero>> {
  using Type = TileGrouped<WidenedU4Zero>;

  static void widen(const uint8_t* block, const layout::WeightFormat& format, const layout::BlockPlace& place,
                    uint8_t* to) {
    const uint8_t* line = block + layout::lines_offset(format, place.depth);
    for (int64_t strip = 0; strip < layout::kStrips; ++strip, line += place.strip) {
      uint8_t* out = to + strip * kWidenedStrip;
      for (int64_t i = 0; i < place.depth / 8; ++i) {
        const u8x64 both = load_u8(line + i * layout::kLineBytes);
        store_u8(out + 2 * i * layout::kLineBytes, low_nibbles(both));
        store_u8(out + (2 * i + 1) * layout::kLineBytes, high_nibbles(both));
      }
    }
  }
};

}  // namespace
}  // namespace torch_cpullm
