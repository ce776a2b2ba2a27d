// Contract of the attention kernels: one page (32 tokens of one KV head) against a tile of query rows.
//
//   scores[r][t] = k_scale[t] * sum over c of q[r][c] * K[c][t]          t < 32, one chain over c in order
//   acc[r][c]   += sum over t < tokens of p[r][t] * V[t][c]              one chain over t in order
//
// K, V and the scales lie as drawn in layout/kv_page.h; elements are widened in registers, never copied. `p` carries
// v_scale already. Rows are independent: a tile of one row gives the bits of a tile of twelve.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/kv_page.h"

namespace torch_cpullm::kernels {

struct ScoreTile {
  const float* q;
  int64_t q_stride;
  const uint8_t* head;  // the page head
  int64_t channels;     // a multiple of 16
  float* scores;
  int64_t score_stride;
  int rows;
};

struct ValueTile {
  const float* p;
  int64_t p_stride;
  const uint8_t* head;
  int64_t channels;
  int64_t tokens;
  float* acc;
  int64_t acc_stride;
  int rows;
};

struct AttentionKernels {
  void (*scores[3])(const ScoreTile&);  // by layout::Format
  void (*values[3])(const ValueTile&);
  int score_rows, value_rows;  // the tallest tile

  // s = cap * tanh(s / cap)
  void (*soft_cap)(float* s, int64_t n, float cap);
  // In place: p = exp(s - max) over the first `count` entries that `keep` (bytes, null for all) leaves, 0 elsewhere up
  // to `padded`; returns the sum. keep[count - 1] is set. With count 0 the row becomes zeros and the sum is 0; where
  // all that is left scores -inf the sum is NaN. The maximum is the true one.
  float (*softmax)(float* s, int64_t count, int64_t padded, const uint8_t* keep);
  // p[t] *= v_scale[t] for the 32 tokens of a page; stays 0 where p is 0, even against a NaN scale.
  void (*fold_value_scale)(float* p, const float* value_scale);
};

const AttentionKernels& attention_kernels();

namespace scalar {
extern const AttentionKernels attention;
}
namespace avx2 {
extern const AttentionKernels attention;
}
namespace avx512 {
extern const AttentionKernels attention;
}

}  // namespace torch_cpullm::kernels
