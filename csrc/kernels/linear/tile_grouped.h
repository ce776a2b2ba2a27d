// Tiles of codes whose groups have scales: integer sums of a group, then floats of a block. Included by linear_body.h.
//
// With two levels of scales the factors of the groups are small integers: the floats of the block are whole numbers up
// to 256 * 120 * 127 < 2^24, so that nothing is rounded until the block's step multiplies them.
#pragma once
#include "kernels/linear/tile_plain.h"

namespace torch_cpullm {
namespace {

// One line of each kind of grouped code: 4 k of int8, or 8 k of int4 in two halves.
struct GroupedS8 {
  static constexpr bool kFar = false;
  static constexpr bool kTwoLevels = false;
  static f32x16 factor(const uint8_t* strip, int64_t group) {
    return load_as_f32(reinterpret_cast<const layout::float16*>(strip) + group * layout::kStripColumns);
  }
  template <int Rows, int Vectors, class I32>
  static void add_line(const Strip& s, const uint8_t* weight, const uint8_t* act, I32 (&sum)[Rows][Vectors]) {
    u8x64 w[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      w[v] = load_u8(weight + v * s.codes_next);
    }
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      const I32 four = broadcast(act + r * layout::kActBytes);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = dot4(sum[r][v], w[v], four);
    }
  }
  static constexpr int kActPerLine = 4;
  template <class I32>
  static I32 start(const Strip&, int64_t, int64_t, int32_t act_sum) {
    return dot4_start(set1_i32(act_sum));
  }
};

struct GroupedU4 {
  static constexpr bool kFar = true;
  static constexpr bool kTwoLevels = true;
  static f32x16 factor(const uint8_t* strip, int64_t group) {
    const uint8_t* multipliers = strip + layout::kMultipliersOffset + group * layout::kStripColumns;
    return load_as_f32(reinterpret_cast<const int8_t*>(multipliers));
  }
  template <int Rows, int Vectors, class I32>
  static void add_line(const Strip& s, const uint8_t* weight, const uint8_t* act, I32 (&sum)[Rows][Vectors]) {
    u8x64 low[Vectors], high[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const u8x64 both = load_u8(weight + v * s.codes_next);
      low[v] = low_nibbles(both);
      high[v] = high_nibbles(both);
    }
    // All of the first halves, then the second: a sum's two products would wait for each other side by side.
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      const I32 four = broadcast(act + r * layout::kActBytes);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = dot4_small(sum[r][v], low[v], four);
    }
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      const I32 four = broadcast(act + r * layout::kActBytes + 4);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = dot4_small(sum[r][v], high[v], four);
    }
  }
  static constexpr int kActPerLine = 8;
  template <class I32>
  static I32 start(const Strip&, int64_t, int64_t, int32_t act_sum) {
    return shift_left(set1_i32(act_sum), 3);
  }
};

struct GroupedU4Zero : GroupedU4 {
  static constexpr bool kTwoLevels = false;
  static f32x16 factor(const uint8_t* strip, int64_t group) { return GroupedS8::factor(strip, group); }
  template <class I32>
  static I32 start(const Strip& s, int64_t v, int64_t group, int32_t act_sum) {
    const uint8_t* zeros = s.weight + v * s.next + s.zeros + group * layout::kStripColumns;
    return mul_i16(load_as_i32(zeros), set1_i32(act_sum));  // |sum of 128 codes| <= 16256
  }
};

template <class Kind>
struct TileGrouped {
  static constexpr int kStreamRows = kLinearGroupRows, kWideRows = kLinearWideGroupRows;
  static constexpr bool kFetchesRows = false;
  template <int Rows, int Vectors, class I32 = i32x16>
  static void run(const Strip& s) {
    f32x16 part[Rows][Vectors];
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) part[r][v] = zero_f32();
    }
    const uint8_t *weight = s.codes, *act = s.act;
    int64_t done = 0;
    for (int64_t group = 0; group < s.groups; ++group) {
      I32 sum[Rows][Vectors];
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v)
          sum[r][v] = Kind::template start<I32>(s, v, group, s.act_sum[r * s.sums + group]);
      }
      constexpr int kLevel = Kind::kFar && Rows <= kFarRowsInt4 ? 2 : 1;
      prefetch_stream<Vectors, kLevel>(s, done + group);  // for the scales between the lines
      const auto next_line = [&] {
        prefetch_stream<Vectors, kLevel>(s, ++done + group);
        Kind::add_line(s, weight, act, sum);
        weight += layout::kLineBytes;
        act += Kind::kActPerLine;
      };
      const int64_t end = done + s.group_lines;
      if constexpr (Rows * Vectors <= 4) {  // few products a line: what the loop itself costs shows
        while (done < end) {                // a group is a multiple of 4 lines
          next_line();
          next_line();
          next_line();
          next_line();
        }
      } else {
        while (done < end) next_line();
      }
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        const f32x16 factor = Kind::factor(s.weight + v * s.next, group);
#pragma GCC unroll 24
        for (int r = 0; r < Rows; ++r) part[r][v] = fma(factor, to_f32(sum[r][v]), part[r][v]);
      }
    }
    add_scaled<Rows, Vectors, Kind::kTwoLevels>(s, part);
  }
};

// What multiplies a tile's codes where many rows pass over a block, after they became bytes (tile_widened.h).
template <class Tile>
struct WidenedTile {
  using Type = void;
};

}  // namespace
}  // namespace torch_cpullm
