// The linear kernels, written once against the lanes of isa/*.h; each ISA file includes this inside its target region.
//
// A tile is Rows x Vectors strips of 16 columns, its sums in registers for one block. Two shapes (isa/*.h counts the
// registers):
//   stream  R x 1   every line of weights is read once, in order, for all rows: memory bound as long as R products a
//                   line (0.5 cycle each on AVX-512) take less than 64 bytes do (about 10 cycles on 2 cores, 53 GB/s)
//   wide    12 x 2  for many rows: 14 loads for 24 products, where 16 x 1 needs 17 for 16; grouped 6 x 2
#pragma once
#include <cstring>

#include "kernels/linear/linear.h"

namespace torch_cpullm {
namespace {

// Prefetched this far ahead: 300 ns at 27 GB/s a core, three times memory's latency, and two strips of 4 KiB in L1.
// Measured with 1 row: 1 KiB 93 %, 4 KiB 98 %, 8 and 16 KiB 100 % of the best; with 12 rows 4 KiB 88 %, 8 KiB 100 %.
// int4 with few rows: on a CPU with 2 MiB of L2 a core 8 KiB 15 GB/s, 4 KiB 17, 3 KiB 17.3, 2 KiB 18, none 16.6.
constexpr int64_t kAhead = 8192, kAheadInt4 = 3072, kAheadInt4Rows = 4;
constexpr int kWideVectors = 2;
// Tiles that prefetch, where a block has more. Spread over all 20 tiles of 120 rows, each line was asked for many times
// over, and int4 lost a sixth of its speed on one thread.
constexpr int64_t kFetchingTiles = 3;

// What a tile sees of one block.
struct Strip {
  const uint8_t* act;  // [Rows][256]
  const float* act_scale;
  const int32_t* act_sum;  // minus the sums
  int64_t sums;            // of a row
  const uint8_t* weight;   // of the first strip
  int64_t next;            // bytes to the following one
  int64_t zeros, lines;    // offsets within a strip
  int64_t line_count, groups, group_lines;
  // What this tile prefetches of the weights to come: `fetch_step` bytes a line from `fetch` on, for each strip.
  const uint8_t* fetch;
  int64_t fetch_step;
  float* c;  // [Rows][64]
};

inline i32x16 broadcast(const uint8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return set1_i32(value);
}

// A part of the weights to come.
template <int Vectors>
inline void prefetch_weights(const Strip& s, int64_t step) {
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) __builtin_prefetch(s.fetch + v * s.next + step * s.fetch_step);
}

// Where tiles are wide, the part of the next tile's activations that lies as far in it as `act` lies in this one's.
// With many rows they come from L2 or beyond, and a tile stalled for them several times: at 2048 rows of 4096 bf16 that
// took a third of the time, with half of them fetched int4 lost a fifth.
template <int Rows, int Vectors>
inline void prefetch_rows(const Strip& s, int64_t bytes_done) {
  if constexpr (Vectors > 1) __builtin_prefetch(s.act + Rows * (layout::kActBytes + bytes_done));
}

template <int Rows, int Vectors>
inline void load_c(const Strip& s, f32x16 (&acc)[Rows][Vectors]) {
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[r][v] = load_f32(s.c + r * layout::kPanelColumns + 16 * v);
  }
}

template <int Rows, int Vectors>
inline void store_c(const Strip& s, const f32x16 (&acc)[Rows][Vectors]) {
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store_f32(s.c + r * layout::kPanelColumns + 16 * v, acc[r][v]);
  }
}

inline f32x16 to_f32(f32x16 a) { return a; }

// c = fma(act_scale, sum, c)
template <int Rows, int Vectors, class Sum>
inline void add_scaled(const Strip& s, const Sum (&sum)[Rows][Vectors]) {
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r) {
    const f32x16 scale = set1_f32(s.act_scale[r]);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      float* c = s.c + r * layout::kPanelColumns + 16 * v;
      store_f32(c, fma(scale, to_f32(sum[r][v]), load_f32(c)));
    }
  }
}

struct TileF32 {
  static constexpr int kStreamRows = kLinearStreamRows, kWideRows = kLinearWideRows;
  template <int Rows, int Vectors>
  static void run(const Strip& s) {
    f32x16 acc[Rows][Vectors];
    load_c<Rows, Vectors>(s, acc);
    for (int64_t line = 0; line < s.line_count; ++line) {
      const uint8_t* weight = s.weight + line * layout::kLineBytes;
      f32x16 w[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        w[v] = load_f32(reinterpret_cast<const float*>(weight + v * s.next));
      }
      prefetch_weights<Vectors>(s, line);
      prefetch_rows<Rows, Vectors>(s, 4 * line);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        float a;
        std::memcpy(&a, s.act + r * layout::kActBytes + 4 * line, sizeof a);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(w[v], set1_f32(a), acc[r][v]);
      }
    }
    store_c<Rows, Vectors>(s, acc);
  }
};

struct TileBf16 {
  static constexpr int kStreamRows = kLinearStreamRows, kWideRows = kLinearWideRows;
  template <int Rows, int Vectors>
  static void run(const Strip& s) {
    f32x16 acc[Rows][Vectors];
    load_c<Rows, Vectors>(s, acc);
    for (int64_t line = 0; line < s.line_count; ++line) {
      const uint8_t* weight = s.weight + line * layout::kLineBytes;
      bf16x32 w[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        w[v] = load_bf16(weight + v * s.next);
      }
      prefetch_weights<Vectors>(s, line);
      prefetch_rows<Rows, Vectors>(s, 4 * line);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const i32x16 pair = broadcast(s.act + r * layout::kActBytes + 4 * line);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[r][v] = dot2(acc[r][v], w[v], pair);
      }
    }
    store_c<Rows, Vectors>(s, acc);
  }
};

// Templates in their integer type only so that an ISA file without dot4 may include this header: the name is looked up
// when it is used.
struct TileS8 {
  static constexpr int kStreamRows = kLinearStreamRows, kWideRows = kLinearWideRows;
  template <int Rows, int Vectors, class I32 = i32x16>
  static void run(const Strip& s) {
    I32 sum[Rows][Vectors];
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      const I32 offset = dot4_start(set1_i32(s.act_sum[r]));
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = offset;
    }
    for (int64_t line = 0; line < s.line_count; ++line) {
      const uint8_t* weight = s.weight + line * layout::kLineBytes;
      u8x64 w[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        w[v] = load_u8(weight + v * s.next);
      }
      prefetch_weights<Vectors>(s, line);
      prefetch_rows<Rows, Vectors>(s, 4 * line);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const I32 four = broadcast(s.act + r * layout::kActBytes + 4 * line);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = dot4(sum[r][v], w[v], four);
      }
    }
    add_scaled<Rows, Vectors>(s, sum);
  }
};

// One line of each kind of grouped code: 4 k of int8, or 8 k of int4 in two halves.
struct GroupedS8 {
  template <int Rows, int Vectors, class I32>
  static void add_line(const Strip& s, const uint8_t* weight, const uint8_t* act, I32 (&sum)[Rows][Vectors]) {
    u8x64 w[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      w[v] = load_u8(weight + v * s.next);
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
  template <int Rows, int Vectors, class I32>
  static void add_line(const Strip& s, const uint8_t* weight, const uint8_t* act, I32 (&sum)[Rows][Vectors]) {
    u8x64 low[Vectors], high[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const u8x64 both = load_u8(weight + v * s.next);
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
  template <class I32>
  static I32 start(const Strip& s, int64_t v, int64_t group, int32_t act_sum) {
    const uint8_t* zeros = s.weight + v * s.next + s.zeros + group * layout::kStripColumns;
    return mul_i16(load_as_i32(zeros), set1_i32(act_sum));  // |sum of 128 codes| <= 16256
  }
};

template <class Kind>
struct TileGrouped {
  static constexpr int kStreamRows = kLinearGroupRows, kWideRows = kLinearWideGroupRows;
  template <int Rows, int Vectors, class I32 = i32x16>
  static void run(const Strip& s) {
    f32x16 part[Rows][Vectors];
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) part[r][v] = zero_f32();
    }
    const uint8_t *weight = s.weight + s.lines, *act = s.act;
    int64_t done = 0;
    for (int64_t group = 0; group < s.groups; ++group) {
      I32 sum[Rows][Vectors];
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v)
          sum[r][v] = Kind::template start<I32>(s, v, group, s.act_sum[r * s.sums + group]);
      }
      prefetch_weights<Vectors>(s, done + group);  // for the scales between the lines
      const auto next_line = [&] {
        prefetch_weights<Vectors>(s, ++done + group);
        prefetch_rows<Rows, Vectors>(s, act - s.act);
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
        const auto* scales = reinterpret_cast<const layout::float16*>(s.weight + v * s.next);
        const f32x16 scale = load_as_f32(scales + group * layout::kStripColumns);
#pragma GCC unroll 24
        for (int r = 0; r < Rows; ++r) part[r][v] = fma(scale, to_f32(sum[r][v]), part[r][v]);
      }
    }
    add_scaled<Rows, Vectors>(s, part);
  }
};

// Rows is a template parameter so that the sums are registers; fewer rows take the smaller twin.
template <class Tile, int Vectors, int Rows>
void run_rows(const Strip& s, int64_t rows) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return run_rows<Tile, Vectors, Rows - 1>(s, rows);
  }
  Tile::template run<Rows, Vectors>(s);
}

// All rows over `Vectors` strips, in tiles of at most Most rows and of even size. The first ones share the prefetching
// of what lies `ahead`, so that memory has work while they compute from L1.
template <class Tile, int Vectors, int Most>
void run_tiles(const kernels::LinearPanel& p, const Strip& s, int64_t ahead) {
  const int64_t tiles = layout::ceil_div(p.rows, Most);
  const int64_t sharing = tiles < kFetchingTiles ? tiles : kFetchingTiles, share = s.next / sharing;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int64_t rows = (p.rows - row) / (tiles - tile);
    Strip part = s;
    part.act += row * layout::kActBytes;
    part.act_scale += row;
    part.act_sum += row * s.sums;
    part.c += row * layout::kPanelColumns;
    part.fetch = tile < sharing ? s.weight + ahead + tile * share : s.weight;
    part.fetch_step = share / (s.line_count + s.groups);  // a group fetches once more than it has lines
    run_rows<Tile, Vectors, Most>(part, rows);
    row += rows;
  }
}

template <class Tile>
void run_panel(const kernels::LinearPanel& p) {
  const int64_t blocks = layout::block_count(p.format, p.padded);
  const int64_t ahead = p.format.codes == layout::Codes::int4 && p.rows <= kAheadInt4Rows ? kAheadInt4 : kAhead;
  for (int64_t b = 0; b < blocks; ++b) {
    const layout::BlockPlace place = layout::block_place(p.format, p.padded, b);
    Strip s{};
    s.sums = p.format.group ? layout::kActivationGroup / p.format.group : 1;
    s.act = p.act + b * p.act_rows * layout::kActBytes;
    s.act_scale = p.act_scale + b * p.act_rows;
    s.act_sum = p.act_sum + b * p.act_rows * s.sums;
    s.next = place.strip;
    s.zeros = layout::zeros_offset(p.format, place.depth);
    s.lines = layout::lines_offset(p.format, place.depth);
    s.line_count = place.depth / layout::depth_per_line(p.format.codes);
    s.groups = layout::groups_in(p.format, place.depth);
    s.group_lines = p.format.group / layout::depth_per_line(p.format.codes);
    const auto at_strip = [&](int64_t strip) {
      s.weight = p.weight + place.offset + strip * place.strip;
      s.c = p.c + strip * layout::kStripColumns;
    };
    if constexpr (kLinearWideRows > 0) {
      if (p.rows >= kLinearWideFrom) {
        for (int strip = 0; strip < layout::kStrips; strip += kWideVectors) {
          at_strip(strip);
          run_tiles<Tile, kWideVectors, Tile::kWideRows>(p, s, layout::kStrips * place.strip);
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
