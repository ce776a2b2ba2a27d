// What one call of attention is asked to do.
#pragma once
#include <cstdint>

#include "kernels/attention/attention.h"

namespace torch_cpullm::drivers {

struct AttentionProblem {
  layout::ConstElements q;  // row (b * tokens + t): heads * channels numbers, head after head
  int64_t q_stride;
  layout::Elements out;  // same shape as q
  int64_t out_stride;
  int64_t batch, tokens, heads;
  layout::LayerPages pages;
  const int32_t* page_table;  // [batch][table_stride]
  int64_t table_stride;
  const int32_t* past;    // [batch]: tokens cached before this call; query t is token past + t
  float scale, soft_cap;  // soft_cap 0: none
  int64_t longest;        // the largest past + tokens

  // A row sees the tokens up to its own, and not beyond `window` of them (0: all). With a mask it is the mask that
  // says, within the tokens there are; with a tree, its bit j says whether query token j is seen.
  int64_t window;
  const uint8_t* mask;  // null: none. Bytes, != 0 attends
  const float* bias;    // null: none. Added to the scores; -inf or nearly hides
  const int64_t* tree;  // null: none. [batch][tokens]
  const float* sinks;   // null: none. [heads]: scores of a token that takes part in the softmax and has no value
  const float* slopes;  // null: none. [heads]: ALiBi, slope * (token - own token) is added
  // Of mask or bias, elements; the last dimension is contiguous.
  int64_t mask_batch_stride, mask_head_stride, mask_token_stride;

  // Chosen by Attention.
  const kernels::AttentionProducts* products;
  const kernels::AttentionPasses* passes;

  int64_t group() const { return heads / pages.heads; }
  int64_t length(int64_t b) const { return past[b] + tokens; }
  bool causal() const { return !mask && !bias && !tree; }
};

}  // namespace torch_cpullm::drivers
