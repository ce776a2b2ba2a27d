// A page of the KV pool: 32 consecutive tokens of one sequence, all layers and KV heads.
//
//   pool     | page 0 | page 1 | ...                      page_stride = sum of layer_bytes
//   page     | layer 0 | layer 1 | ...                    layer_bytes = heads * head_bytes
//   layer    | head 0 | head 1 | ...
//   head     | K[channels][32] | V[32][channels] | k_scale f32[32] | v_scale f32[32] |
//
// K lies with the tokens side by side: scores of 32 tokens are then two vectors of lanes, with no sum across lanes and
// one multiplication by k_scale per score. V lies with the channels side by side, so probability * V is a sum over
// tokens of whole vectors; v_scale is folded into the probability. Elements are f32, bf16 or int8 codes.
//
// Quantised: code = round(x / scale), scale = absmax / 127 per token and head, symmetric. In the float formats the
// scale is 1. In all formats a token that holds NaN or Inf is stored as finite elements with scale NaN: whoever attends
// to it gets NaN, whoever does not (probability 0) never multiplies by it.
//
// 32 tokens: at head size 64 an INT8 head is 4.25 KiB, so a few pages of K stay in L1 while a row block passes over
// them, two zmm of scores fill a 12 x 2 register tile, and a sequence wastes 31 tokens at most.
#pragma once
#include <cstdint>

#include "layout/panel.h"

namespace torch_cpullm::layout {

enum class Format : uint32_t { f32 = 0, bf16 = 1, int8 = 2 };

constexpr int64_t element_bytes(Format format) { return format == Format::int8 ? 1 : format == Format::bf16 ? 2 : 4; }

constexpr int64_t kPageTokens = 32;
// Sums over tokens are taken per chunk of pages and then in chunk order, so that the work may be split between threads
// at chunk borders without changing a bit. 8 pages: 256 tokens keep two threads busy from 512 tokens on.
constexpr int64_t kChunkPages = 8;
constexpr int64_t kMaxHeadChannels = 256;

constexpr int64_t key_offset() { return 0; }
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

// One layer's pages: page i of head g starts at base + i * page_stride + g * head_bytes.
struct LayerPages {
  uint8_t* base;
  int64_t page_stride;
  int64_t count;
  Format format;
  int64_t heads, channels;

  uint8_t* head(int64_t page, int64_t g) const { return base + page * page_stride + g * head_bytes(format, channels); }
};

}  // namespace torch_cpullm::layout
