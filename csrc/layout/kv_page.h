// A page of the KV pool: 64 consecutive tokens of one sequence, all layers and KV heads.
//
//   pool     | page 0 | page 1 | ...                      page_stride = sum of layer_bytes
//   page     | layer 0 | layer 1 | ...                    layer_bytes = heads * head_bytes
//   layer    | head 0 | head 1 | ...
//   head     | K | V | k_scale f32[64] | v_scale f32[64] |
//
// K and V are lines of 64 bytes, as packed weights are (layout/panel.h): 16 columns with 4 bytes of depth each, which
// are `kLineDepth` elements. So both products of attention are a row of numbers against lines, and no product sums
// across lanes:
//
//   K    depth runs over channels, columns over tokens          V    depth runs over tokens, columns over channels
//        | t0 t15 | t16 t31 | t32 t47 | t48 t63 |                    | c0 c15 | c16 c31 | ... |
//   c0..  line 0    line 1    line 2    line 3                  t0..  line 0    line 1
//   c4..  line 4    ...                      (int8: 4 deep)     t4..  line C/16 ...
//
// Quantised: code = round(x / scale), scale = absmax / 127 per token and head, symmetric, stored as code + 128 (the
// unsigned operand of vpdpbusd). In the float formats the scale is 1. In all formats a token that holds NaN or Inf is
// stored as finite elements with scale NaN: whoever attends to it gets NaN, whoever does not never multiplies by it.
//
// 64 tokens: V of a page is then one AMX operand of full depth, an INT8 head of 64 channels is 8.5 KiB that are read in
// one go, and a sequence wastes 63 tokens at most.
#pragma once
#include <cstdint>
#include <cstring>

#include "layout/panel.h"

namespace torch_cpullm::layout {

enum class Format : uint32_t { f32 = 0, bf16 = 1, int8 = 2 };

constexpr int64_t kPageTokens = 64;
// Attention goes by chunks of pages: whatever floats are added across chunks are added in chunk order, so that the
// work may be split between threads at chunk borders without changing a bit. 4 pages: 256 tokens keep two threads busy
// from 512 tokens on.
constexpr int64_t kChunkPages = 4, kChunkTokens = kChunkPages * kPageTokens;
constexpr int64_t kMaxHeadChannels = 256;

constexpr int64_t element_bytes(Format format) { return format == Format::int8 ? 1 : format == Format::bf16 ? 2 : 4; }
// Elements that share a column of a line.
constexpr int64_t line_depth(Format format) { return 4 / element_bytes(format); }

constexpr int64_t value_offset(Format format, int64_t channels) {
  return channels * kPageTokens * element_bytes(format);
}
constexpr int64_t key_scale_offset(Format format, int64_t channels) { return 2 * value_offset(format, channels); }
constexpr int64_t value_scale_offset(Format format, int64_t channels) {
  return key_scale_offset(format, channels) + kPageTokens * 4;
}
constexpr int64_t head_bytes(Format format, int64_t channels) {
  return key_scale_offset(format, channels) + kPageTokens * 8;
}

// Elements before element (depth, column) of a part with `columns` columns.
constexpr int64_t element_index(Format format, int64_t depth, int64_t column, int64_t columns) {
  const int64_t deep = line_depth(format);
  return (depth / deep * columns + column) * deep + depth % deep;
}

// Sets the values of the slots behind `slot` to zero. Products go over whole lines of a page: what no token has been
// written to is multiplied by zero, and must not be NaN. Codes never are.
inline void clear_values_behind(uint8_t* head, Format format, int64_t channels, int64_t slot) {
  if (format == Format::int8) return;
  const int64_t deep = line_depth(format), bytes = element_bytes(format);
  uint8_t* values = head + value_offset(format, channels);
  int64_t next = slot + 1;
  for (; next % deep != 0; ++next)
    for (int64_t c = 0; c < channels; ++c)
      std::memset(values + element_index(format, next, c, channels) * bytes, 0, static_cast<size_t>(bytes));
  const int64_t done = next * channels * bytes;
  std::memset(values + done, 0, static_cast<size_t>(value_offset(format, channels) - done));
}

// One layer's pages: page i of head g starts at base + i * page_stride + g * head_bytes.
struct LayerPages {
  uint8_t* base;
  int64_t page_stride;
  int64_t count;
  Format format;
  int64_t heads, channels;

  uint8_t* head(int64_t page, int64_t g) const { return base + page * page_stride + g * head_bytes(format, channels); }

  // After the last of some tokens was written at `position`, behind `past` that were there: clears what is left of the
  // page, if it was not begun before.
  void close(int64_t page, int64_t position, int64_t past) const {
    if (position / kPageTokens < ceil_div(past, kPageTokens)) return;
    for (int64_t g = 0; g < heads; ++g) clear_values_behind(head(page, g), format, channels, position % kPageTokens);
  }
};

}  // namespace torch_cpullm::layout
