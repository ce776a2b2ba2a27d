// Tiles without group scales: the sums of R rows x V strips over one block, in registers. Included by linear_body.h.
#pragma once
#include <cstring>

#include "kernels/linear/linear.h"

namespace torch_cpullm {
namespace {

// Prefetched this far ahead, into L1: 300 ns at 27 GB/s a core, three times memory's latency, and two strips of 4 KiB.
// Measured with 1 row: 1 KiB 93 %, 4 KiB 98 %, 8 and 16 KiB 100 % of the best; with 12 rows 4 KiB 88 %, 8 KiB 100 %.
//
// int4 with few rows: farther, and into L2. Its lines take twice the instructions of int8's, and waited for what was on
// its way to L1: one row of 2048 -> 8192 took 340 us on two threads with 2 to 4 KiB into L1, 345 to 360 with 8 and 16,
// 305 with 3 to 8 KiB into L2, 300 with 16.
constexpr int64_t kAhead = 8192, kFarInt4 = 16384, kFarRowsInt4 = 4;

// What a tile sees of one block.
struct Strip {
  const uint8_t* act;  // [Rows][256]
  const float* act_scale;
  const int32_t* act_sum;                   // minus the sums
  int64_t sums;                             // of a row
  const uint8_t* weight;                    // of the first strip
  int64_t next;                             // bytes to the following one
  int64_t zeros;                            // offset within a strip
  const uint8_t* codes;                     // the first line: a strip's own, or widened
  int64_t codes_next;                       // bytes to the following strip's
  int64_t line_count, groups, group_lines;  // of this block
  // What a streaming tile prefetches of the weights to come: `fetch_step` bytes a line from `fetch` on.
  const uint8_t* fetch;
  int64_t fetch_step;
  float* c;  // [Rows][64]
};

inline i32x16 broadcast(const uint8_t* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return set1_i32(value);
}

// The weights to come, where a tile is one that streams: into the cache of that level.
template <int Vectors, int Level>
inline void prefetch_stream(const Strip& s, int64_t step) {
  if constexpr (Vectors == 1) __builtin_prefetch(s.fetch + step * s.fetch_step, 0, 4 - Level);
}

// In a wide tile, the part of the next tile's activations that lies as far in it as line `line` lies in this one's:
// with many rows they come from L2 or beyond, and stalls for them took a third of the time at 2048 rows of 4096 bf16.
template <int Rows, int Vectors>
inline void prefetch_rows(const Strip& s, int64_t line) {
  if constexpr (Vectors > 1) __builtin_prefetch(s.act + Rows * (layout::kActBytes + 4 * line));
}

inline void prefetch_lines(const uint8_t* first, const uint8_t* last) {
  for (const uint8_t* line = first; line < last; line += layout::kLineBytes) __builtin_prefetch(line);
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

// c = fma(act_scale, sum, c), or with two levels of scales c = fma(act_scale, sum * step of the block, c).
template <int Rows, int Vectors, bool TwoLevels, class Sum>
inline void add_scaled(const Strip& s, const Sum (&sum)[Rows][Vectors]) {
  f32x16 step[Vectors];
#pragma GCC unroll 4
  for (int v = 0; TwoLevels && v < Vectors; ++v)
    step[v] = load_as_f32(reinterpret_cast<const layout::float16*>(s.weight + v * s.next));
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r) {
    const f32x16 scale = set1_f32(s.act_scale[r]);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      float* c = s.c + r * layout::kPanelColumns + 16 * v;
      f32x16 part = to_f32(sum[r][v]);
      if constexpr (TwoLevels) part = mul(part, step[v]);
      store_f32(c, fma(scale, part, load_f32(c)));
    }
  }
}

struct TileF32 {
  static constexpr int kStreamRows = kLinearStreamRows, kWideRows = kLinearWideRows;
  static constexpr bool kFetchesRows = true;
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
      prefetch_stream<Vectors, 1>(s, line);
      prefetch_rows<Rows, Vectors>(s, line);
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
  static constexpr bool kFetchesRows = true;
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
      prefetch_stream<Vectors, 1>(s, line);
      prefetch_rows<Rows, Vectors>(s, line);
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

// Bytes that are 128 above a signed number: the codes of int8, or int4's already multiplied (TwoLevels).
// Templates in their integer type only so that an ISA file without dot4 may include this header: the name is looked up
// when it is used.
template <bool TwoLevels>
struct TileBytes {
  static constexpr int kStreamRows = kLinearStreamRows, kWideRows = kLinearWideRows;
  static constexpr bool kFetchesRows = true;

  static int32_t block_sum(const Strip& s, int row) {
    if constexpr (!TwoLevels) return s.act_sum[row];
    int32_t sum = 0;
    for (int64_t group = 0; group < s.groups; ++group) sum += s.act_sum[row * s.sums + group];
    return sum;
  }

  template <int Rows, int Vectors, class I32 = i32x16>
  static void run(const Strip& s) {
    I32 sum[Rows][Vectors];
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      const I32 offset = dot4_start(set1_i32(block_sum(s, r)));
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = offset;
    }
    for (int64_t line = 0; line < s.line_count; ++line) {
      const uint8_t* weight = s.codes + line * layout::kLineBytes;
      u8x64 w[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        w[v] = load_u8(weight + v * s.codes_next);
      }
      prefetch_stream<Vectors, 1>(s, line);
      prefetch_rows<Rows, Vectors>(s, line);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const I32 four = broadcast(s.act + r * layout::kActBytes + 4 * line);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] = dot4(sum[r][v], w[v], four);
      }
    }
    add_scaled<Rows, Vectors, TwoLevels>(s, sum);
  }
};
using TileS8 = TileBytes<false>;

}  // namespace
}  // namespace torch_cpullm
