// Contract of the attention kernels: two products of a block of rows with pages of one KV head, and what happens to a
// row of scores between them. A row's numbers never depend on the rows beside it.
//
//   scores   s[r][t] = factor[r] * sum over c of q[r][c] * K[c][t]
//   largest  the row's maximum of s[t] * key_scale[t], in powers of two
//   weigh    p[t] = 2^(s[t] * key_scale[t] - shift) * value_scale[t]
//   values   o[r][c] = sum over t of p[r][t] * V[t][c]
//
// Rows are encoded for the format of the pages (RowLayout below): against int8 pages q and p are 15-bit numbers in two
// signed bytes, 128 * high + low, so that both products are exact integers, the same ones on every CPU.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/element.h"
#include "layout/kv_page.h"

namespace torch_cpullm::kernels {

// Tokens that a row sees, [begin, end); a mask may hide some in between.
struct RowRange {
  int64_t begin, end;
};

// How rows of `depth` numbers lie: in groups of 4 bytes, one for each line of pages.
//   f32   float[depth]
//   bf16  bf16[depth]
//   int8  high int8[depth], low int8[depth], `plane` bytes apart
// Rows end in zeros up to whole AMX tiles of depth.
struct RowLayout {
  int64_t plane, bytes;  // bytes: of a row

  RowLayout(layout::Format format, int64_t depth) {
    plane = (depth * layout::element_bytes(format) + 63) / 64 * 64;
    bytes = format == layout::Format::int8 ? 2 * plane : plane;
  }
};

struct Rows {
  const uint8_t* data;
  RowLayout layout;
  int64_t count;
  const int32_t* sum;    // int8: of the row's numbers
  const RowRange* seen;  // absolute tokens; pages that no row of a tile sees are left out
};

// The same part, K or V of one head, of some pages: page i's is `offset` bytes behind pages[i].
struct PageParts {
  const uint8_t* const* pages;
  int64_t offset;

  const uint8_t* operator[](int64_t i) const { return pages[i] + offset; }
  PageParts from(int64_t i) const { return {pages + i, offset}; }
};

// What is prefetched while page i is read, line for line: part i, from `first` on.
struct Ahead {
  PageParts parts;
  int64_t first = INT64_MAX;

  const uint8_t* operator[](int64_t i) const { return i < first ? nullptr : parts[i]; }
  Ahead from(int64_t i) const { return first == INT64_MAX ? *this : Ahead{parts.from(i), first - i}; }
};

// Both products go over `pages` pages of a sequence, of which the first begins at token `first`.
struct ScoreTask {
  Rows q;
  const float* factor;
  PageParts keys;
  Ahead ahead;
  int64_t first, pages, channels;
  float* scores;  // left as they were for pages that no row of a tile sees
  int64_t stride;
};
struct ValueTask {
  Rows p;  // kChunkTokens deep
  PageParts values;
  Ahead ahead;
  int64_t first, pages, channels;
  float* out;  // overwritten
  int64_t stride;
};

struct AttentionProducts {
  void (*scores)(const ScoreTask&);
  void (*values)(const ValueTask&);
};

// Scores are in powers of two: what e would be raised to, times this.
constexpr float kLog2E = 1.44269504f;

// Masks of floats hide with -inf or with the lowest number of their type.
constexpr float kHiddenBelow = -1e38f;

// A chunk's worth of one row's scores.
struct RowScores {
  float* s;
  int64_t begin, end;  // what the row sees of the chunk
  const float* key_scale;
  const float* value_scale;
  // Null: no value scale is NaN. Else 1, or NaN where it is (and value_scale 0).
  const float* sound;
  // With one of these the scores are changed in place by `largest`, and taken as they are by `weigh`.
  bool altered;
  float soft_cap;       // 0: none; s = cap * tanh(s / cap)
  float slope;          // s += slope * (t - position): ALiBi
  int64_t position;     // of the row, counted from the chunk's first token
  const float* bias;    // null: none; s += bias[t], and below kHiddenBelow it hides
  const uint8_t* keep;  // null: all of [begin, end)
  // What weigh prefetches meanwhile: up to kWeighLines lines.
  const uint8_t* ahead;
  int64_t ahead_lines;
};

// Memory delivers about as many lines in the time that a row's weights take.
constexpr int64_t kWeighLines = 32;

struct AttentionPasses {
  // Encodes `depth` numbers as a row; the result times the encoded numbers gives them back. NaN where x holds NaN or
  // Inf.
  float (*encode[3])(layout::ConstElements x, int64_t depth, uint8_t* row, int32_t* sum);
  float (*largest)(const RowScores&);
  // p * value_scale as a row, kChunkTokens deep, zero outside of what the row sees. Returns the sum of p.
  float (*weigh[3])(const RowScores&, float shift, uint8_t* row, int32_t* sum);
  // Copies n scales, a multiple of 16; false if one is NaN.
  bool (*take_scales)(const float* from, int64_t n, float* to);
  // The largest of n scales; NaN are passed over.
  float (*largest_scale)(const float* scale, int64_t n);
  // total = total * before + part * now
  void (*combine)(float* total, float before, const float* part, float now, int64_t n);
  // out = total * factor
  void (*finish)(const float* total, float factor, int64_t n, layout::Elements out);
};

const AttentionProducts& attention_products(layout::Format format);
const AttentionPasses& attention_passes();

namespace scalar {
extern const AttentionProducts attention_f32, attention_bf16, attention_int8;
extern const AttentionPasses attention_passes;
}  // namespace scalar
namespace avx2 {
extern const AttentionProducts attention_f32, attention_bf16, attention_int8;
extern const AttentionPasses attention_passes;
}  // namespace avx2
namespace avxvnni {
extern const AttentionProducts attention_int8;
}
namespace avx512 {
extern const AttentionProducts attention_f32, attention_bf16;
extern const AttentionPasses attention_passes;
}  // namespace avx512
namespace avx512bf16 {
extern const AttentionProducts attention_bf16;
}
namespace avx512vnni {
extern const AttentionProducts attention_int8;
}
namespace amx {
extern const AttentionProducts attention_bf16, attention_int8;
}

}  // namespace torch_cpullm::kernels
