// Rows against lines, written once against the lanes of isa/*.h: both products of attention. Each ISA file includes
// this inside its target region.
//
//             | 16 columns | 16 | 16 | 16 |     one line each, 4 bytes of depth a column
//   row r     |     sum    |    |    |    |     `Vectors` sums a row; int8 keeps two, for its high and low bytes
//   row r + 1 |            |
#pragma once
#include <algorithm>
#include <cstring>

#include "kernels/attention/attention.h"

namespace torch_cpullm {
namespace {

using kernels::RowRange;
using kernels::Rows;
using layout::kLineBytes;
using layout::kPageTokens;

inline i32x16 broadcast_four(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return set1_i32(four);
}

struct F32Product {
  static constexpr int64_t kDepth = 1;  // of a line
  static constexpr int kSums = 1;
  struct Sum {
    f32x16 sum;
  };
  static Sum start(const int32_t*, int64_t) { return {zero_f32()}; }
  static f32x16 line(const uint8_t* p) { return load_f32(reinterpret_cast<const float*>(p)); }
  static f32x16 left(const uint8_t* p, int64_t) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return set1_f32(x);
  }
  static void add_to(Sum& s, f32x16 b, f32x16 a) { s.sum = fma(b, a, s.sum); }
  static f32x16 value(const Sum& s) { return s.sum; }
};

struct Bf16Product {
  static constexpr int64_t kDepth = 2;
  static constexpr int kSums = 1;
  struct Sum {
    f32x16 sum;
  };
  static Sum start(const int32_t*, int64_t) { return {zero_f32()}; }
  static bf16x32 line(const uint8_t* p) { return load_bf16(p); }
  static i32x16 left(const uint8_t* p, int64_t) { return broadcast_four(p); }
  static void add_to(Sum& s, bf16x32 b, i32x16 a) { s.sum = dot2(s.sum, b, a); }
  static f32x16 value(const Sum& s) { return s.sum; }
};

// `count` blocks of `lines` lines of depth, one behind the other in depth, as one tile of columns sees them.
struct Lines {
  kernels::PageParts blocks;
  kernels::Ahead ahead;
  int64_t count, lines, next;  // next: bytes to the following line of depth
};

template <class Op, int RowCount, int Vectors>
inline void multiply_tile(const Lines& lines, int64_t offset, const Rows& a, int64_t row, const uint8_t* left,
                          const float* factor, float* out, int64_t stride) {
  typename Op::Sum sum[RowCount][Vectors];
#pragma GCC unroll 12
  for (int r = 0; r < RowCount; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Op::start(a.sum, row + r);
  }
  for (int64_t block = 0; block < lines.count; ++block) {
    const uint8_t* line = lines.blocks[block] + offset;
    const uint8_t* ahead = lines.ahead[block] ? lines.ahead[block] + offset : nullptr;
    for (int64_t i = 0; i < lines.lines; ++i, line += lines.next, left += 4) {
      decltype(Op::line(line)) b[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) b[v] = Op::line(line + v * kLineBytes);
      if (ahead) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) __builtin_prefetch(ahead + i * lines.next + v * kLineBytes, 0, 2);
      }
#pragma GCC unroll 12
      for (int r = 0; r < RowCount; ++r) {
        const auto x = Op::left(left + r * a.layout.bytes, a.layout.plane);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) Op::add_to(sum[r][v], b[v], x);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < RowCount; ++r) {
    const f32x16 scale = set1_f32(factor ? factor[r] : 1.0f);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store_f32(out + r * stride + 16 * v, mul(Op::value(sum[r][v]), scale));
  }
}

template <class Op, int RowCount, int Vectors, class... Rest>
inline void multiply_rows(int64_t rows, const Lines& lines, const Rest&... rest) {
  if constexpr (RowCount > 1) {
    if (rows < RowCount) return multiply_rows<Op, RowCount - 1, Vectors>(rows, lines, rest...);
  }
  multiply_tile<Op, RowCount, Vectors>(lines, rest...);
}

// Rows whose sums fill the registers with so many vectors each; 0 where one row is too much.
template <class Op, int Vectors>
constexpr int kRowsOf = kAttentionSums / (Op::kSums * Vectors);

// Pages [begin, end) of a task that some of `count` rows from `row` on see.
inline RowRange seen_pages(const Rows& a, int64_t row, int64_t count, int64_t first, int64_t pages) {
  RowRange seen{INT64_MAX, 0};
  for (int64_t r = row; r < row + count; ++r) {
    if (a.seen[r].begin >= a.seen[r].end) continue;
    seen.begin = std::min(seen.begin, a.seen[r].begin);
    seen.end = std::max(seen.end, a.seen[r].end);
  }
  if (seen.end <= first || seen.begin >= first + pages * kPageTokens) return {0, 0};
  return {std::max<int64_t>(0, (seen.begin - first) / kPageTokens),
          std::min(pages, (seen.end - first + kPageTokens - 1) / kPageTokens)};
}

// The first rows prefetch for all.
template <class Task>
inline kernels::Ahead ahead_of(const Task& t, int64_t row, int64_t page) {
  return row == 0 ? t.ahead.from(page) : kernels::Ahead{};
}

template <class Op, int Vectors>
inline void scores_of_width(const kernels::ScoreTask& t) {
  constexpr int kRows = kRowsOf<Op, Vectors>;
  for (int64_t row = 0; row < t.q.count; row += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, t.q.count - row);
    const RowRange pages = seen_pages(t.q, row, rows, t.first, t.pages);
    for (int64_t page = pages.begin; page < pages.end; ++page) {
      const Lines lines{t.keys.from(page), ahead_of(t, row, page), 1, t.channels / Op::kDepth,
                        kPageTokens / 16 * kLineBytes};
      for (int64_t column = 0; column < kPageTokens; column += 16 * Vectors)
        multiply_rows<Op, kRows, Vectors>(rows, lines, column * 4, t.q, row, t.q.data + row * t.q.layout.bytes,
                                          t.factor + row, t.scores + row * t.stride + page * kPageTokens + column,
                                          t.stride);
    }
  }
}

// Few rows: all columns of a page at once, so that it is read in address order.
template <class Op>
void scores(const kernels::ScoreTask& t) {
  if constexpr (kRowsOf<Op, 4> > 0) {
    if (t.q.count <= kRowsOf<Op, 4>) return scores_of_width<Op, 4>(t);
  }
  scores_of_width<Op, 2>(t);
}

template <class Op, int RowCount, int Vectors>
inline void value_columns(const kernels::ValueTask& t, int64_t row, int64_t rows, RowRange pages, int64_t first,
                          int64_t end) {
  const Lines lines{t.values.from(pages.begin), ahead_of(t, row, pages.begin), pages.end - pages.begin,
                    kPageTokens / Op::kDepth, t.channels / 16 * kLineBytes};
  const uint8_t* left = t.p.data + row * t.p.layout.bytes + pages.begin * kPageTokens / Op::kDepth * 4;
  for (int64_t column = first; column < end; column += 16 * Vectors)
    multiply_rows<Op, RowCount, Vectors>(rows, lines, column * 4, t.p, row, left, static_cast<const float*>(nullptr),
                                         t.out + row * t.stride + column, t.stride);
}

template <class Op, int Vectors>
inline void values_of_width(const kernels::ValueTask& t) {
  constexpr int kRows = kRowsOf<Op, Vectors>;
  const int64_t whole = t.channels / (16 * Vectors) * (16 * Vectors);
  for (int64_t row = 0; row < t.p.count; row += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, t.p.count - row);
    const RowRange pages = seen_pages(t.p, row, rows, t.first, t.pages);
    value_columns<Op, kRows, Vectors>(t, row, rows, pages, 0, whole);
    value_columns<Op, kRows, 1>(t, row, rows, pages, whole, t.channels);
  }
}

template <class Op>
void values(const kernels::ValueTask& t) {
  if constexpr (kRowsOf<Op, 4> > 0) {
    if (t.p.count <= kRowsOf<Op, 4> && t.channels >= 64) return values_of_width<Op, 4>(t);
  }
  values_of_width<Op, 2>(t);
}

}  // namespace
}  // namespace torch_cpullm
