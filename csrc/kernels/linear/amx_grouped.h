// Codes whose groups have f16 scales (grouped int8, asymmetric int4), on AMX. Included by linear_amx.cpp inside its
// target region.
//
// A block's codes become signed bytes without their zero point, once for all rows (16 KiB that stay in L1). Then, for
// each 16 rows x 16 columns, group by group:
//
//   int32 [16][16]  = rows [16][group] * codes [group][16]                    one product for 32 or 64 k, two for 128
//   float [16][16] += scale of the group and column * int32                   16 conversions, 16 multiply-adds
//
// The floats stay in registers for the block. What is scaled is the tile before the one that is multiplied: both units
// work at once.
#pragma once
#include <algorithm>

#include "kernels/linear/linear.h"

namespace torch_cpullm {
namespace {

constexpr int64_t kBlockLines = 64;  // of bytes: a strip's 256 k
constexpr int64_t kMostGroups = 8;
constexpr int64_t kAmxGroupedFrom = 12;  // rows; measured, README.md

// From one stored line to lines of signed bytes; `zero` is what a group takes off each code.
struct WidenS8 {
  static constexpr int64_t kLines = 1;
  static u8x64 zero(const uint8_t*) { return _mm512_set1_epi8(-128); }
  static void widen(u8x64 line, u8x64 zero, uint8_t* to) { store_u8(to, _mm512_sub_epi8(line, zero)); }
};
struct WidenU4Zero {
  static constexpr int64_t kLines = 2;
  static u8x64 zero(const uint8_t* of_columns) {
    return mul_i16(load_as_i32(of_columns), set1_i32(0x01010101));  // each column's in all of its four bytes
  }
  static void widen(u8x64 line, u8x64 zero, uint8_t* to) {
    store_u8(to, _mm512_sub_epi8(low_nibbles(line), zero));
    store_u8(to + layout::kLineBytes, _mm512_sub_epi8(high_nibbles(line), zero));
  }
};

// A block's stored strips. group_lines: 8, 16 or 32, of bytes.
struct GroupedBlock {
  const uint8_t* weight = nullptr;
  int64_t strip_bytes = 0, zeros = 0, lines = 0, groups = 0, group_lines = 0;
};

template <class Widen>
inline void widen_block(const GroupedBlock& b, uint8_t* codes) {
  for (int64_t strip = 0; strip < layout::kStrips; ++strip) {
    const uint8_t* from = b.weight + strip * b.strip_bytes;
    const uint8_t* line = from + b.lines;
    uint8_t* to = codes + strip * kBlockLines * layout::kLineBytes;
    for (int64_t group = 0; group < b.groups; ++group) {
      const u8x64 zero = Widen::zero(from + b.zeros + group * layout::kStripColumns);
      for (int64_t i = 0; i < b.group_lines; i += Widen::kLines) {
        Widen::widen(load_u8(line), zero, to);
        line += layout::kLineBytes;
        to += Widen::kLines * layout::kLineBytes;
      }
    }
  }
}

// A tile whose integer sums wait for their scales.
struct WaitingTile {
  const layout::float16* scales;  // [groups][16]
  const float* act_scale;
  float* c;
  int64_t groups = 0, rows = 0;
};

struct GroupedPass {
  alignas(64) uint8_t codes[layout::kStrips * kBlockLines * layout::kLineBytes];
  alignas(64) int32_t sums[kMostGroups][kTileRows][kTileRows];
  WaitingTile waiting;
  const uint8_t* fetch = nullptr;  // the weights to come, `fetch_lines` a group
  int64_t fetch_lines = 0;
};

inline void scale_group(const GroupedPass& pass, int64_t group, f32x16 (&part)[kTileRows]) {
  const f32x16 scale = load_as_f32(pass.waiting.scales + group * layout::kStripColumns);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) part[r] = fma(scale, to_f32(load_i32(pass.sums[group][r])), part[r]);
}

// Integer sums of one group in register C.
template <int C>
inline void multiply_group(GroupedPass& pass, const GroupedBlock& b, const uint8_t* act, const uint8_t* codes,
                           int64_t group) {
  for (int64_t line = 0; line < pass.fetch_lines; ++line) {
    __builtin_prefetch(pass.fetch);
    pass.fetch += layout::kLineBytes;
  }
  const int64_t steps = layout::ceil_div(b.group_lines, kTileRows);
  codes += group * b.group_lines * layout::kLineBytes;
  act += group * b.group_lines * 4;
  tile_zero<C>();
  for (int64_t step = 0; step < steps; ++step) {
    tile_load<6>(codes + step * kTileBytes, layout::kLineBytes);
    tile_load<4>(act + step * layout::kLineBytes, layout::kActBytes);
    tile_dot_s8_s8<C, 4, 6>();
  }
}

// Multiplies 16 rows from `act` with a strip from `codes`, and finishes the tile that waits.
inline void grouped_tile(GroupedPass& pass, const GroupedBlock& b, const uint8_t* act, const uint8_t* codes,
                         const WaitingTile& then) {
  f32x16 part[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) part[r] = zero_f32();
  const int64_t waiting_groups = pass.waiting.groups;
  const int64_t both = std::min(b.groups, waiting_groups) / 4 * 4;
  int64_t group = 0;
  for (; group < both; group += 4) {
    multiply_group<0>(pass, b, act, codes, group);
    multiply_group<1>(pass, b, act, codes, group + 1);
    scale_group(pass, group, part);
    tile_store<0>(pass.sums[group], layout::kLineBytes);
    multiply_group<2>(pass, b, act, codes, group + 2);
    scale_group(pass, group + 1, part);
    tile_store<1>(pass.sums[group + 1], layout::kLineBytes);
    multiply_group<3>(pass, b, act, codes, group + 3);
    scale_group(pass, group + 2, part);
    tile_store<2>(pass.sums[group + 2], layout::kLineBytes);
    scale_group(pass, group + 3, part);
    tile_store<3>(pass.sums[group + 3], layout::kLineBytes);
  }
  for (int64_t rest = group; rest < waiting_groups; ++rest) scale_group(pass, rest, part);
  for (; group < b.groups; ++group) {
    multiply_group<0>(pass, b, act, codes, group);
    tile_store<0>(pass.sums[group], layout::kLineBytes);
  }
  const WaitingTile done = pass.waiting;
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= done.rows) break;
    float* c = done.c + r * layout::kPanelColumns;
    store_f32(c, fma(set1_f32(done.act_scale[r]), part[r], load_f32(c)));
  }
  pass.waiting = then;
}

// The last tile may hold fewer rows: it reads the ones behind them (linear.h), and keeps its own.
template <class Widen>
void grouped_pass(const kernels::LinearPanel& p) {
  const int64_t bytes = std::min<int64_t>(p.format.group, layout::kLineBytes);
  const int64_t blocks = layout::block_count(p.format, p.padded), tiles = layout::ceil_div(p.rows, kTileRows);
  TileShapes shapes;
  for (int tile = 0; tile < 4; ++tile) shapes.set(tile, kTileRows, layout::kLineBytes);
  shapes.set(4, kTileRows, bytes);
  shapes.set(6, bytes / 4, layout::kLineBytes);
  const TileScope scope(shapes);
  GroupedPass pass;
  for (int64_t block = 0; block < blocks; ++block) {
    const layout::BlockPlace place = layout::block_place(p.format, p.padded, block);
    const GroupedBlock b{p.weight + place.offset,
                         place.strip,
                         layout::zeros_offset(p.format, place.depth),
                         layout::lines_offset(p.format, place.depth),
                         layout::groups_in(p.format, place.depth),
                         p.format.group / 4};
    widen_block<Widen>(b, pass.codes);
    pass.fetch = b.weight + layout::kStrips * b.strip_bytes;
    pass.fetch_lines =
        layout::ceil_div(layout::kStrips * b.strip_bytes, tiles * layout::kStrips * b.groups * layout::kLineBytes);
    const uint8_t* act = p.act + block * p.act_rows * layout::kActBytes;
    for (int64_t row = 0; row < p.rows; row += kTileRows) {
      for (int64_t strip = 0; strip < layout::kStrips; ++strip) {
        grouped_tile(
            pass, b, act + row * layout::kActBytes, pass.codes + strip * kBlockLines * layout::kLineBytes,
            {reinterpret_cast<const layout::float16*>(b.weight + strip * b.strip_bytes),
             p.act_scale + block * p.act_rows + row, p.c + row * layout::kPanelColumns + strip * layout::kStripColumns,
             b.groups, std::min(kTileRows, p.rows - row)});
      }
    }
  }
  grouped_tile(pass, GroupedBlock{}, nullptr, nullptr, WaitingTile{});
}

// Fewer than kAmxGroupedFrom rows take the AVX-512 kernel, whose bits are the same: integers, and floats in one order.
template <class Widen, const kernels::LinearFn& few>
void run_grouped(const kernels::LinearPanel& p) {
  (p.rows < kAmxGroupedFrom ? few : grouped_pass<Widen>)(p);
}

}  // namespace
}  // namespace torch_cpullm
