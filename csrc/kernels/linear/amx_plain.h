// bf16 and int8 without groups on AMX. Included by linear_amx.cpp inside its target region.
//
// Registers: sums 0 1 / 2 3 (two row tiles x two strips), activations 4 5, weights 6 7:
//
//                    strip s   strip s+1
//                      [6]       [7]        16 lines of a strip, as they lie
//   rows r .. r+15 [4]  0         1
//   rows r+16 ..   [5]  2         3         64 bytes of each row's block, rows 256 bytes apart
//
// 4 products for 4 loads, 17 cycles a product and 9 a load. Up to 32 rows one strip at a time, so that weights are read
// once and in address order: a product costs 17 cycles, its kilobyte 200 from memory.
#pragma once
#include <algorithm>
#include <cstring>

#include "kernels/linear/linear.h"

namespace torch_cpullm {
namespace {

constexpr int64_t kAmxPair = 2 * kTileRows;
constexpr int64_t kTileLines = 16, kBlockTiles = 4;  // a strip of a block: 4 KiB

inline TileShapes plain_shapes(int64_t upper, int64_t lower) {
  TileShapes shapes;
  for (int strip = 0; strip < 2; ++strip) {
    shapes.set(strip, upper, layout::kLineBytes);
    shapes.set(2 + strip, std::max<int64_t>(lower, 1), layout::kLineBytes);
    shapes.set(6 + strip, kTileLines, layout::kLineBytes);
  }
  shapes.set(4, upper, layout::kLineBytes);
  shapes.set(5, std::max<int64_t>(lower, 1), layout::kLineBytes);
  return shapes;
}

// A block of K as a pass sees it, from its first row and strip on.
struct TileBlock {
  const uint8_t *act, *weight;
  int64_t next;          // bytes to the following strip
  int64_t steps;         // registers a strip fills
  const uint8_t* fetch;  // what to prefetch, of each strip: `fetch_lines` lines a step
  int64_t fetch_lines, fetch_next;
};

// A tile load that misses the caches waits for each line; ordinary loads do not, and the hardware prefetches for them:
// one thread reads 14 GB/s with the former, 19 with the latter before it.
inline void touch(const uint8_t* tile) {
#pragma GCC unroll 16
  for (int line = 0; line < kTileLines; ++line) keep(load_u8(tile + line * layout::kLineBytes));
}

template <class Dot, int RowTiles, int Strips>
inline void add_step(const TileBlock& t, int64_t row, int64_t strip, int64_t k) {
  const uint8_t* weight = t.weight + strip * t.next + k * kTileBytes;
  const uint8_t* act = t.act + row * layout::kActBytes + k * layout::kLineBytes;
  if constexpr (Strips == 1) {
    touch(weight);
  } else {
    const uint8_t* fetch = t.fetch + strip * t.fetch_next + k * t.fetch_lines * layout::kLineBytes;
    for (int64_t line = 0; line < t.fetch_lines; ++line) {
#pragma GCC unroll 2
      for (int s = 0; s < Strips; ++s) __builtin_prefetch(fetch + s * t.fetch_next + line * layout::kLineBytes, 0, 2);
    }
  }
  tile_load<6>(weight, layout::kLineBytes);
  tile_load<4>(act, layout::kActBytes);
  Dot::template dot<0, 4, 6>();
  if constexpr (Strips == 2) {
    tile_load<7>(weight + t.next, layout::kLineBytes);
    Dot::template dot<1, 4, 7>();
  }
  if constexpr (RowTiles == 2) {
    tile_load<5>(act + kTileRows * layout::kActBytes, layout::kActBytes);
    Dot::template dot<2, 5, 6>();
    if constexpr (Strips == 2) Dot::template dot<3, 5, 7>();
  }
}

// Float sums leave their registers after each kBlocks blocks.
struct PlainBf16 {
  static constexpr int64_t kBlocks = 2;
  template <int C, int A, int B>
  static void dot() {
    tile_dot_bf16<C, A, B>();
  }
  struct Sums {};

  template <int RowTiles, int Strips>
  static void run(const TileBlock (&blocks)[kBlocks], int64_t count, int64_t row, int64_t strip,
                  const kernels::LinearPanel& p, int64_t, Sums&) {
    constexpr int64_t kRow = layout::kPanelColumns * sizeof(float), kRows = kTileRows * layout::kPanelColumns;
    float* c = p.c + row * layout::kPanelColumns + strip * layout::kStripColumns;
    tile_load<0>(c, kRow);
    if constexpr (Strips == 2) tile_load<1>(c + kTileRows, kRow);
    if constexpr (RowTiles == 2) tile_load<2>(c + kRows, kRow);
    if constexpr (RowTiles * Strips == 4) tile_load<3>(c + kRows + kTileRows, kRow);
    for (int64_t b = 0; b < count; ++b)
      for (int64_t k = 0; k < blocks[b].steps; ++k) add_step<PlainBf16, RowTiles, Strips>(blocks[b], row, strip, k);
    tile_store<0>(c, kRow);
    if constexpr (Strips == 2) tile_store<1>(c + kTileRows, kRow);
    if constexpr (RowTiles == 2) tile_store<2>(c + kRows, kRow);
    if constexpr (RowTiles * Strips == 4) tile_store<3>(c + kRows + kTileRows, kRow);
  }
  template <int Strips>
  static void finish(Sums&) {}
};

// Integer sums of a block that become floats while the next ones are multiplied.
template <class Finish>
struct WaitingSums {
  alignas(64) int32_t values[kAmxPair][2 * kTileRows];
  Finish finish;
  float* c;
  int64_t rows = 0;
};

template <int Strips, class Finish>
inline void finish_rows(const WaitingSums<Finish>& sums, int64_t from, int64_t to) {
  if (from >= sums.rows) return;
  const auto finish = sums.finish.template of_strips<Strips>();
  for (int64_t r = from; r < std::min(to, sums.rows); ++r) {
#pragma GCC unroll 2
    for (int s = 0; s < Strips; ++s) {
      float* c = sums.c + r * layout::kPanelColumns + s * kTileRows;
      store_f32(c, finish(r, s, load_i32(sums.values[r] + s * kTileRows), load_f32(c)));
    }
  }
}

// One or two row tiles and strips of a block; the sums that waited are finished meanwhile, and these wait.
template <class Dot, int RowTiles, int Strips, class Finish>
inline void multiply_integers(const TileBlock& block, int64_t row, int64_t strip, const kernels::LinearPanel& p,
                              const Finish& finish, WaitingSums<Finish>& sums) {
  constexpr int64_t kRow = 2 * kTileRows * sizeof(int32_t), kEach = RowTiles * kTileRows / kBlockTiles;
  tile_zero<0>();
  if constexpr (Strips == 2) tile_zero<1>();
  if constexpr (RowTiles == 2) tile_zero<2>();
  if constexpr (RowTiles * Strips == 4) tile_zero<3>();
  for (int64_t k = 0; k < block.steps; ++k) {
    add_step<Dot, RowTiles, Strips>(block, row, strip, k);
    finish_rows<Strips>(sums, k * kEach, (k + 1) * kEach);
  }
  finish_rows<Strips>(sums, block.steps * kEach, kAmxPair);
  auto* to = sums.values;
  tile_store<0>(to[0], kRow);
  if constexpr (Strips == 2) tile_store<1>(to[0] + kTileRows, kRow);
  if constexpr (RowTiles == 2) tile_store<2>(to[kTileRows], kRow);
  if constexpr (RowTiles * Strips == 4) tile_store<3>(to[kTileRows] + kTileRows, kRow);
  sums.finish = finish;
  sums.c = p.c + row * layout::kPanelColumns + strip * layout::kStripColumns;
  sums.rows = std::min(RowTiles * kTileRows, p.rows - row);
}

// c = fma(act_scale, sum, c), where weights are stored as code + 128.
struct FinishS8 {
  const float* act_scale;
  const int32_t* act_sum;

  template <int>
  FinishS8 of_strips() const {
    return *this;
  }
  f32x16 operator()(int64_t r, int, i32x16 sum, f32x16 c) const {
    const i32x16 offset = shift_left(set1_i32(act_sum[r]), 7);
    return fma(set1_f32(act_scale[r]), to_f32(add(sum, offset)), c);
  }
};

struct PlainS8 {
  static constexpr int64_t kBlocks = 1;
  template <int C, int A, int B>
  static void dot() {
    tile_dot_s8_u8<C, A, B>();
  }
  using Sums = WaitingSums<FinishS8>;

  template <int RowTiles, int Strips>
  static void run(const TileBlock (&blocks)[kBlocks], int64_t, int64_t row, int64_t strip,
                  const kernels::LinearPanel& p, int64_t block, Sums& sums) {
    const int64_t at = block * p.act_rows + row;
    multiply_integers<PlainS8, RowTiles, Strips>(blocks[0], row, strip, p, FinishS8{p.act_scale + at, p.act_sum + at},
                                                 sums);
  }
  template <int Strips>
  static void finish(Sums& sums) {
    finish_rows<Strips>(sums, 0, kAmxPair);
  }
};

// The last lines of a panel where they fill no register: with lines of zeros behind them.
inline const uint8_t* padded_block(const uint8_t* block, int64_t strip_bytes,
                                   uint8_t (&to)[4][kBlockTiles * kTileBytes]) {
  std::memset(to, 0, sizeof to);
  for (int64_t strip = 0; strip < layout::kStrips; ++strip)
    std::memcpy(to[strip], block + strip * strip_bytes, strip_bytes);
  return to[0];
}

// Rows first .. last - 1 with all of a panel; a multiple of 32, or at most 32.
template <class Kind, int RowTiles, int Strips>
void plain_pass(const kernels::LinearPanel& p, int64_t first, int64_t last) {
  constexpr int64_t kRows = RowTiles * kTileRows;
  const int64_t upper = std::min(kTileRows, last - first);
  const TileScope scope(plain_shapes(upper, std::min(kTileRows, last - first - upper)));
  alignas(64) uint8_t tail[4][kBlockTiles * kTileBytes];
  typename Kind::Sums sums{};
  const int64_t blocks = layout::block_count(p.format, p.padded);
  // Every row tile fetches its share of the blocks to come, in address order: memory works all the time.
  const int64_t lines = layout::ceil_div(kTileLines, layout::ceil_div(last - first, kRows));
  for (int64_t begin = 0; begin < blocks; begin += Kind::kBlocks) {
    const int64_t count = std::min(Kind::kBlocks, blocks - begin);
    TileBlock group[Kind::kBlocks] = {};
    for (int64_t i = 0; i < count; ++i) {
      const layout::BlockPlace place = layout::block_place(p.format, p.padded, begin + i);
      const uint8_t* weight = p.weight + place.offset;
      const bool whole = place.strip % kTileBytes == 0;
      group[i] = {p.act + (begin + i) * p.act_rows * layout::kActBytes,
                  whole ? weight : padded_block(weight, place.strip, tail),
                  whole ? place.strip : kBlockTiles * kTileBytes,
                  layout::ceil_div(place.strip, kTileBytes),
                  nullptr,
                  whole ? lines : 0,
                  place.strip};
    }
    for (int64_t row = first; row < last; row += kRows) {
      for (int64_t i = 0; i < count; ++i)
        group[i].fetch = group[i].weight + Kind::kBlocks * layout::kStrips * group[i].next +
                         (row - first) / kRows * group[i].steps * lines * layout::kLineBytes;
      for (int strip = 0; strip < layout::kStrips; strip += Strips)
        Kind::template run<RowTiles, Strips>(group, count, row, strip, p, begin, sums);
    }
  }
  Kind::template finish<Strips>(sums);
}

// More rows than a tile has.
template <class Kind>
void run_pairs(const kernels::LinearPanel& p) {
  const int64_t pairs = p.rows / kAmxPair * kAmxPair, rest = p.rows - pairs;
  if (p.rows <= kAmxPair) return plain_pass<Kind, 2, 1>(p, 0, p.rows);
  plain_pass<Kind, 2, 2>(p, 0, pairs);
  if (rest > kTileRows) return plain_pass<Kind, 2, 2>(p, pairs, p.rows);
  if (rest) plain_pass<Kind, 1, 2>(p, pairs, p.rows);
}

inline void run_bf16(const kernels::LinearPanel& p) {
  if (p.rows > kTileRows) return run_pairs<PlainBf16>(p);
  plain_pass<PlainBf16, 1, 1>(p, 0, p.rows);
}

// Up to 16 rows take the AVX-512 kernel, whose bits are the same: integers, and floats in one order.
template <const kernels::LinearFn& few>
void run_s8(const kernels::LinearPanel& p) {
  (p.rows > kTileRows ? run_pairs<PlainS8> : few)(p);
}

}  // namespace
}  // namespace torch_cpullm
