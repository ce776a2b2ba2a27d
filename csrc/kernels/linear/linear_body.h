// The linear kernels, written once against the lanes of isa/*.h; each ISA file includes this inside its target region.
//
// A tile is Rows x Vectors strips of 16 columns, its sums in registers for one block. Two shapes (isa/*.h counts the
// registers):
//   stream  R x 1   every line of weights is read once, in order, for all rows: memory bound as long as R products a
//                   line (0.5 cycle each on AVX-512) take less than 64 bytes do (about 10 cycles on 2 cores, 53 GB/s)
//   wide    12 x 2  for many rows: 14 loads for 24 products, where 16 x 1 needs 17 for 16; grouped 6 x 2
//
// tile_plain.h and tile_grouped.h have what a tile does; here is how tiles cover a panel.
#pragma once
#include <type_traits>

#include "kernels/linear/tile_grouped.h"

namespace torch_cpullm {
namespace {

constexpr int kWideVectors = 2;
// Streaming tiles that prefetch, where a block has more.
constexpr int64_t kFetchingTiles = 3;

constexpr int64_t kWidenedStrip = layout::kActivationGroup / 4 * layout::kLineBytes;

// Rows is a template parameter so that the sums are registers; fewer rows take the smaller twin.
template <class Tile, int Vectors, int Rows>
void run_rows(const Strip& s, int64_t rows) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return run_rows<Tile, Vectors, Rows - 1>(s, rows);
  }
  Tile::template run<Rows, Vectors>(s);
}

// All rows over `Vectors` strips, in tiles of at most Most rows and of even size, while memory fetches what lies
// `ahead`: streaming tiles share it line by line, wide ones each ask for a part before they start. Grouped ones ask for
// the next one's rows then as well: line by line in their loops, that took 15 % of the instructions.
template <class Tile, int Vectors, int Most>
void run_tiles(const kernels::LinearPanel& p, const Strip& s, int64_t ahead) {
  const int64_t tiles = layout::ceil_div(p.rows, Most);
  const int64_t sharing = tiles < kFetchingTiles ? tiles : kFetchingTiles, share = s.next / sharing;
  const int64_t stored_lines = Vectors * s.next / layout::kLineBytes;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int64_t rows = (p.rows - row) / (tiles - tile);
    Strip part = s;
    part.act += row * layout::kActBytes;
    part.act_scale += row;
    part.act_sum += row * s.sums;
    part.c += row * layout::kPanelColumns;
    if constexpr (Vectors > 1) {
      const uint8_t *weights = s.weight + ahead, *rows_end = part.act + rows * layout::kActBytes;
      if (!Tile::kFetchesRows) prefetch_lines(rows_end, rows_end + rows * layout::kActBytes);
      prefetch_lines(weights + tile * stored_lines / tiles * layout::kLineBytes,
                     weights + (tile + 1) * stored_lines / tiles * layout::kLineBytes);
    } else {
      part.fetch = tile < sharing ? s.weight + ahead + tile * share : s.weight;
      part.fetch_step = share / (s.line_count + s.groups);  // a group fetches once more than it has lines
    }
    run_rows<Tile, Vectors, Most>(part, rows);
    row += rows;
  }
}

template <class Tile>
void run_panel(const kernels::LinearPanel& p) {
  alignas(64) uint8_t widened[layout::kStrips * kWidenedStrip];
  const int64_t blocks = layout::block_count(p.format, p.padded);
  const int64_t ahead = p.format.codes == layout::Codes::int4 && p.rows <= kFarRowsInt4 ? kFarInt4 : kAhead;
  for (int64_t b = 0; b < blocks; ++b) {
    const layout::BlockPlace place = layout::block_place(p.format, p.padded, b);
    Strip s{};
    s.sums = p.format.group ? layout::kActivationGroup / p.format.group : 1;
    s.act = p.act + b * p.act_rows * layout::kActBytes;
    s.act_scale = p.act_scale + b * p.act_rows;
    s.act_sum = p.act_sum + b * p.act_rows * s.sums;
    s.next = place.strip;
    s.zeros = layout::zeros_offset(p.format, place.depth);
    s.codes_next = place.strip;
    s.line_count = place.depth / layout::depth_per_line(p.format.codes);
    s.groups = layout::groups_in(p.format, place.depth);
    s.group_lines = p.format.group / layout::depth_per_line(p.format.codes);
    const uint8_t* codes = p.weight + place.offset + layout::lines_offset(p.format, place.depth);
    const auto at_strip = [&](int64_t strip) {
      s.weight = p.weight + place.offset + strip * place.strip;
      s.codes = codes + strip * s.codes_next;
      s.c = p.c + strip * layout::kStripColumns;
    };
    const auto run_wide = [&]<class Wide>(Wide) {
      for (int strip = 0; strip < layout::kStrips; strip += kWideVectors) {
        at_strip(strip);
        run_tiles<Wide, kWideVectors, Wide::kWideRows>(p, s, layout::kStrips * place.strip);
      }
    };
    if constexpr (kLinearWideRows > 0) {
      if (p.rows >= kLinearWideFrom) {
        using Wide = typename WidenedTile<Tile>::Type;
        if constexpr (std::is_void_v<Wide>) {
          run_wide(Tile{});
        } else {
          WidenedTile<Tile>::widen(p.weight + place.offset, p.format, place, widened);
          codes = widened;
          s.codes_next = kWidenedStrip;
          s.line_count *= 2;
          s.group_lines *= 2;
          run_wide(Wide{});
        }
        continue;
      }
    }
    for (int strip = 0; strip < layout::kStrips; ++strip) {
      at_strip(strip);
      run_tiles<Tile, 1, Tile::kStreamRows>(p, s, ahead);
    }
  }
}

}  // namespace
}  // namespace torch_cpullm
