// Rows against lines of int8 codes on AMX. Included by attention_amx.cpp inside its target region.
//
// Registers, for one tile of 16 rows and two of 16 columns:
//
//                      columns c  c + 16
//                          [6]     [7]        16 lines of depth: 64 of it
//   high bytes   [4]        0       1
//   low bytes    [5]        2       3         64 bytes of 16 rows
//
// 4 products for 4 loads, 16 cycles a product and 8 a load. The sums of one tile become floats while the next one is
// multiplied: stores of registers wait for their products, and 32 vectors of floats fill that time.
//
// Depth that is no whole register (heads of 80 channels) meets zeros on the left; the lines behind a page's keys are
// its values.
#pragma once
#include "kernels/attention/product_body.h"

namespace torch_cpullm {
namespace {

constexpr int64_t kTileLines = 16, kTileDepth = 64, kTileColumns = 32;
// Fewer rows go by vectors, with the same bits: measured, see README.md.
constexpr int64_t kAmxAttentionFrom = 7;
// A register of 64 channels would reach beyond a head of 16.
constexpr int64_t kFewestTileChannels = 32;

// A tile's place: rows on the left, lines of pages, floats that come out.
struct TilePlace {
  const uint8_t* left;
  const uint8_t* const* blocks;  // `count` of them, `steps` registers of depth each
  const uint8_t* const* ahead;
  int64_t count, steps;
  int64_t next, offset;  // bytes from a line of depth to the following; of the columns in it
  int64_t columns;       // 16 or 32
  const int32_t* row_sum;
  const float* factor;
  float* out;
  int64_t stride;
};

class Int8Tiles {
 public:
  Int8Tiles(const Rows& a, int64_t rows) : layout_(a.layout), rows_(rows), scope_(shapes(rows)) {}
  ~Int8Tiles() { finish(); }

  void multiply(const TilePlace& t) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    const int64_t second = t.columns == kTileColumns ? kLineBytes : 0;
    const uint8_t* left = t.left;
    for (int64_t block = 0; block < t.count; ++block) {
      const uint8_t* lines = t.blocks[block] + t.offset;
      for (int64_t step = 0; step < t.steps; ++step, lines += kTileLines * t.next, left += kTileDepth) {
        if (t.ahead) fetch(t.ahead[block] + t.offset + step * kTileLines * t.next, t.next);
        tile_load<6>(lines, t.next);
        tile_load<4>(left, layout_.bytes);
        tile_dot_s8_u8<0, 4, 6>();
        tile_load<7>(lines + second, t.next);
        tile_dot_s8_u8<1, 4, 7>();
        tile_load<5>(left + layout_.plane, layout_.bytes);
        tile_dot_s8_u8<2, 5, 6>();
        tile_dot_s8_u8<3, 5, 7>();
      }
    }
    finish();
    constexpr int64_t kRow = kTileColumns * sizeof(int32_t);
    tile_store<0>(high_[0], kRow);
    tile_store<1>(high_[0] + 16, kRow);
    tile_store<2>(low_[0], kRow);
    tile_store<3>(low_[0] + 16, kRow);
    waiting_ = t;
  }

 private:
  static TileShapes shapes(int64_t rows) {
    TileShapes shapes;
    for (int tile = 0; tile < 6; ++tile) shapes.set(tile, rows, kLineBytes);
    shapes.set(6, kTileLines, kLineBytes);
    shapes.set(7, kTileLines, kLineBytes);
    return shapes;
  }
  static void fetch(const uint8_t* lines, int64_t next) {
#pragma GCC unroll 16
    for (int64_t line = 0; line < kTileLines; ++line) {
      __builtin_prefetch(lines + line * next, 0, 2);
      __builtin_prefetch(lines + line * next + kLineBytes, 0, 2);
    }
  }
  void finish() {
    if (waiting_.columns == 0) return;
    for (int64_t r = 0; r < rows_; ++r) {
      const i32x16 excess = shift_left(set1_i32(-waiting_.row_sum[r]), 7);
      const f32x16 scale = set1_f32(waiting_.factor ? waiting_.factor[r] : 1.0f);
      for (int64_t v = 0; v < waiting_.columns; v += 16) {
        const i32x16 sum = add(add(shift_left(load_i32(high_[r] + v), 7), load_i32(low_[r] + v)), excess);
        store_f32(waiting_.out + r * waiting_.stride + v, mul(to_f32(sum), scale));
      }
    }
    waiting_.columns = 0;
  }

  kernels::RowLayout layout_;
  int64_t rows_;
  TileScope scope_;
  TilePlace waiting_{};  // whose sums lie in high_ and low_
  alignas(64) int32_t high_[kTileRows][kTileColumns], low_[kTileRows][kTileColumns];
};

// body(tiles, row, rows) for whole tiles of rows, then for what is left.
template <class Body>
inline void for_row_tiles(const Rows& a, const Body& body) {
  const int64_t whole = a.count / kTileRows * kTileRows;
  if (whole > 0) {
    Int8Tiles tiles(a, kTileRows);
    for (int64_t row = 0; row < whole; row += kTileRows) body(tiles, row, kTileRows);
  }
  if (whole < a.count) {
    Int8Tiles tiles(a, a.count - whole);
    body(tiles, whole, a.count - whole);
  }
}

void scores_on_tiles(const kernels::ScoreTask& t, void (*few_rows)(const kernels::ScoreTask&)) {
  if (t.q.count < kAmxAttentionFrom || t.channels < kFewestTileChannels) return few_rows(t);
  constexpr int64_t kNext = kPageTokens / 16 * kLineBytes;
  for_row_tiles(t.q, [&](Int8Tiles& tiles, int64_t row, int64_t rows) {
    const RowRange pages = seen_pages(t.q, row, rows, t.first, t.pages);
    for (int64_t page = pages.begin; page < pages.end; ++page) {
      for (int64_t column = 0; column < kPageTokens; column += kTileColumns)
        tiles.multiply({t.q.data + row * t.q.layout.bytes, t.keys + page,
                        row == 0 && t.ahead ? t.ahead + page : nullptr, 1, (t.channels + kTileDepth - 1) / kTileDepth,
                        kNext, column * 4, kTileColumns, t.q.sum + row, t.factor + row,
                        t.scores + row * t.stride + page * kPageTokens + column, t.stride});
    }
  });
}

void values_on_tiles(const kernels::ValueTask& t, void (*few_rows)(const kernels::ValueTask&)) {
  if (t.p.count < kAmxAttentionFrom || t.channels < kFewestTileChannels) return few_rows(t);
  for_row_tiles(t.p, [&](Int8Tiles& tiles, int64_t row, int64_t rows) {
    const RowRange pages = seen_pages(t.p, row, rows, t.first, t.pages);
    for (int64_t column = 0; column < t.channels; column += kTileColumns)
      tiles.multiply({t.p.data + row * t.p.layout.bytes + pages.begin * kPageTokens, t.values + pages.begin,
                      row == 0 && t.ahead ? t.ahead + pages.begin : nullptr, pages.end - pages.begin, 1,
                      t.channels / 16 * kLineBytes, column * 4, std::min(kTileColumns, t.channels - column),
                      t.p.sum + row, nullptr, t.out + row * t.stride + column, t.stride});
  });
}

}  // namespace
}  // namespace torch_cpullm
