// Rows against lines on AMX. Included by attention_amx.cpp inside its target region.
//
// Registers, for one tile of 16 rows:
//
//   int8   columns c  c+16               bf16   columns c  c+16  c+32  c+48
//               [6]   [7]                            [5]    [6]    [7]   [5]     16 lines of depth
//   high  [4]    0     1                       [4]    0      1      2     3
//   low   [5]    2     3                                                       64 bytes of 16 rows
//
// Up to 8 rows of int8 go as bf16 does: high and low of a row are two rows of register 4.
//
// 4 products for 4 or 5 loads, 16 cycles a product and 8 a load. The sums of one tile become floats while the next one
// is multiplied: stores of registers wait for their products, and the vectors of floats fill that time.
//
// Depth that is no whole register (heads of 80 channels) meets zeros on the left; the lines behind a page's keys are
// its values, finite numbers.
#pragma once
#include "kernels/attention/product_body.h"

namespace torch_cpullm {
namespace {

constexpr int64_t kTileLines = 16;

// A tile's place: rows on the left, lines of pages, floats that come out.
struct TilePlace {
  const uint8_t* left;
  kernels::PageParts blocks;  // `count` of them, `steps` registers of depth each
  kernels::Ahead ahead;
  int64_t count, steps;
  int64_t next, offset;  // bytes from a line of depth to the following; of the columns in it
  int64_t columns;       // a multiple of 16
  const int32_t* row_sum;
  const float* factor;
  float* out;
  int64_t stride;
};

template <int64_t kColumns>
inline void fetch_lines(const uint8_t* lines, int64_t next) {
  for (int64_t line = 0; line < kTileLines; ++line) {
#pragma GCC unroll 4
    for (int64_t column = 0; column < kColumns; column += 16)
      __builtin_prefetch(lines + line * next + column * 4, 0, 2);
  }
}

struct Int8Tiles {
  static constexpr int64_t kRows = 16, kColumns = 32, kDepth = 4;  // kDepth: of a line
  static constexpr int64_t kFewestChannels = 32;                   // the lines of 64 would reach beyond a head of 16
  alignas(64) int32_t high[kTileRows][kColumns], low[kTileRows][kColumns];

  static void shapes(TileShapes& shapes, int64_t rows) {
    for (int tile = 0; tile < 6; ++tile) shapes.set(tile, rows, kLineBytes);
    for (int tile = 6; tile < 8; ++tile) shapes.set(tile, kTileLines, kLineBytes);
  }
  static void step(const uint8_t* lines, const TilePlace& t, const uint8_t* left, const kernels::RowLayout& layout) {
    tile_load<6>(lines, t.next);
    tile_load<4>(left, layout.bytes);
    tile_dot_s8_u8<0, 4, 6>();
    tile_load<7>(lines + (t.columns > 16 ? kLineBytes : 0), t.next);
    tile_dot_s8_u8<1, 4, 7>();
    tile_load<5>(left + layout.plane, layout.bytes);
    tile_dot_s8_u8<2, 5, 6>();
    tile_dot_s8_u8<3, 5, 7>();
  }
  void store() {
    tile_store<0>(high[0], sizeof high[0]);
    tile_store<1>(high[0] + 16, sizeof high[0]);
    tile_store<2>(low[0], sizeof low[0]);
    tile_store<3>(low[0] + 16, sizeof low[0]);
  }
  static i32x16 start(const TilePlace& t, int64_t row) { return shift_left(set1_i32(-t.row_sum[row]), 7); }
  f32x16 value(i32x16 start, int64_t row, int64_t column) const {
    const i32x16 sum = add(shift_left(load_i32(high[row] + column), 7), load_i32(low[row] + column));
    return to_f32(add(sum, start));
  }
};

// One register of rows against 64 columns. `Numbers` says what a row is.
template <class Numbers>
struct WideTiles {
  static constexpr int64_t kRows = Numbers::kRows, kColumns = 64, kDepth = Numbers::kDepth;
  static constexpr int64_t kLines = kTileRows / kRows;  // of a register, for one row
  alignas(64) typename Numbers::Sum sum[kTileRows][kColumns];

  static void shapes(TileShapes& shapes, int64_t rows) {
    for (int tile = 0; tile < 5; ++tile) shapes.set(tile, kLines * rows, kLineBytes);
    for (int tile = 5; tile < 8; ++tile) shapes.set(tile, kTileLines, kLineBytes);
  }
  static void step(const uint8_t* lines, const TilePlace& t, const uint8_t* left, const kernels::RowLayout& layout) {
    tile_load<4>(left, layout.bytes / kLines);
    tile_load<5>(lines, t.next);
    Numbers::template dot<0, 4, 5>();
    if (t.columns > 16) {
      tile_load<6>(lines + kLineBytes, t.next);
      Numbers::template dot<1, 4, 6>();
    }
    if (t.columns > 32) {
      tile_load<7>(lines + 2 * kLineBytes, t.next);
      Numbers::template dot<2, 4, 7>();
    }
    if (t.columns > 48) {
      tile_load<5>(lines + 3 * kLineBytes, t.next);
      Numbers::template dot<3, 4, 5>();
    }
  }
  void store() {
    tile_store<0>(sum[0], sizeof sum[0]);
    tile_store<1>(sum[0] + 16, sizeof sum[0]);
    tile_store<2>(sum[0] + 32, sizeof sum[0]);
    tile_store<3>(sum[0] + 48, sizeof sum[0]);
  }
  static auto start(const TilePlace& t, int64_t row) { return Numbers::start(t, row); }
  f32x16 value(decltype(Numbers::start({}, 0)) start, int64_t row, int64_t column) const {
    return Numbers::value(start, sum[kLines * row] + column, sum[kLines * row + kLines - 1] + column);
  }
};

// Both bytes of a row side by side, as two rows of the register.
struct Int8Digits {
  using Sum = int32_t;
  static constexpr int64_t kRows = 8, kDepth = 4;
  template <int kSum, int kLeft, int kRight>
  static void dot() {
    tile_dot_s8_u8<kSum, kLeft, kRight>();
  }
  static i32x16 start(const TilePlace& t, int64_t row) { return Int8Tiles::start(t, row); }
  static f32x16 value(i32x16 start, const int32_t* high, const int32_t* low) {
    return to_f32(add(add(shift_left(load_i32(high), 7), load_i32(low)), start));
  }
};
using Int8Pairs = WideTiles<Int8Digits>;

struct Bf16Numbers {
  using Sum = float;
  static constexpr int64_t kRows = 16, kDepth = 2;
  template <int kSum, int kLeft, int kRight>
  static void dot() {
    tile_dot_bf16<kSum, kLeft, kRight>();
  }
  static int start(const TilePlace&, int64_t) { return 0; }
  static f32x16 value(int, const float* sum, const float*) { return load_f32(sum); }
};
using Bf16Tiles = WideTiles<Bf16Numbers>;

// Tiles of `rows` rows, one after the other; the last one's floats come with the destructor.
template <class Sums>
class RowTiles {
 public:
  RowTiles(const kernels::RowLayout& layout, int64_t rows) : layout_(layout), rows_(rows), scope_(shapes(rows)) {}
  ~RowTiles() { finish(); }
  RowTiles(const RowTiles&) = delete;
  RowTiles& operator=(const RowTiles&) = delete;

  void multiply(const TilePlace& t) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    const uint8_t* left = t.left;
    for (int64_t block = 0; block < t.count; ++block) {
      for (int64_t step = 0; step < t.steps; ++step, left += kLineBytes) {
        const int64_t place = t.offset + step * kTileLines * t.next;
        if (const uint8_t* ahead = t.ahead[block]) fetch_lines<Sums::kColumns>(ahead + place, t.next);
        Sums::step(t.blocks[block] + place, t, left, layout_);
      }
    }
    finish();
    sums_.store();
    waiting_ = t;
  }

 private:
  static TileShapes shapes(int64_t rows) {
    TileShapes shapes;
    Sums::shapes(shapes, rows);
    return shapes;
  }
  void finish() {
    if (waiting_.columns == 0) return;
    const TilePlace t = waiting_;  // in registers: the stores of floats could be to the members
    const int64_t rows = rows_;
    float* out = t.out;
    for (int64_t r = 0; r < rows; ++r, out += t.stride) {
      const f32x16 scale = set1_f32(t.factor ? t.factor[r] : 1.0f);
      const auto start = Sums::start(t, r);
#pragma GCC unroll 4
      for (int64_t column = 0; column < Sums::kColumns; column += 16) {
        if (column >= t.columns) break;
        store_f32(out + column, mul(sums_.value(start, r, column), scale));
      }
    }
    waiting_.columns = 0;
  }

  kernels::RowLayout layout_;
  int64_t rows_;
  TileScope scope_;
  TilePlace waiting_{};  // whose sums lie in sums_
  Sums sums_;
};

// body(tiles, row, rows) for whole tiles of rows, then for what is left.
template <class Sums, class Body>
inline void for_row_tiles(const Rows& a, const Body& body) {
  constexpr int64_t kRows = Sums::kRows;
  const int64_t whole = a.count / kRows * kRows;
  if (whole > 0) {
    RowTiles<Sums> tiles(a.layout, kRows);
    for (int64_t row = 0; row < whole; row += kRows) body(tiles, row, kRows);
  }
  if (whole < a.count) {
    RowTiles<Sums> tiles(a.layout, a.count - whole);
    body(tiles, whole, a.count - whole);
  }
}

template <class Sums>
void scores_on_tiles(const kernels::ScoreTask& t) {
  constexpr int64_t kDepth = kTileLines * Sums::kDepth;  // of a register
  for_row_tiles<Sums>(t.q, [&](RowTiles<Sums>& tiles, int64_t row, int64_t rows) {
    const RowRange pages = seen_pages(t.q, row, rows, t.first, t.pages);
    for (int64_t page = pages.begin; page < pages.end; ++page) {
      for (int64_t column = 0; column < kPageTokens; column += Sums::kColumns)
        tiles.multiply({t.q.data + row * t.q.layout.bytes, t.keys.from(page), ahead_of(t, row, page), 1,
                        (t.channels + kDepth - 1) / kDepth, kPageTokens / 16 * kLineBytes, column * 4, Sums::kColumns,
                        t.q.sum + row, t.factor + row, t.scores + row * t.stride + page * kPageTokens + column,
                        t.stride});
    }
  });
}

template <class Sums>
void values_on_tiles(const kernels::ValueTask& t) {
  constexpr int64_t kSteps = kPageTokens / Sums::kDepth / kTileLines;  // registers of depth in a page
  for_row_tiles<Sums>(t.p, [&](RowTiles<Sums>& tiles, int64_t row, int64_t rows) {
    const RowRange pages = seen_pages(t.p, row, rows, t.first, t.pages);
    const uint8_t* left = t.p.data + row * t.p.layout.bytes + pages.begin * kSteps * kLineBytes;
    for (int64_t column = 0; column < t.channels; column += Sums::kColumns)
      tiles.multiply({left, t.values.from(pages.begin), ahead_of(t, row, pages.begin), pages.end - pages.begin, kSteps,
                      t.channels / 16 * kLineBytes, column * 4, std::min(Sums::kColumns, t.channels - column),
                      t.p.sum + row, nullptr, t.out + row * t.stride + column, t.stride});
  });
}

}  // namespace
}  // namespace torch_cpullm
