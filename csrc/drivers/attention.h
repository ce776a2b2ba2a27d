// SlimAttention over the paged KV pool (arXiv 2407.07304, section 2.2), from one decoded token to a long prefill.
//
// One-dimensional decomposition: a task is (sequence, KV head, block of query tokens). It computes whole score rows
// S[rows, tokens] into a buffer of its thread (half the L2 where that holds 24 rows), takes one ordinary softmax per
// row with the true maximum, and multiplies by V once. All query heads of a KV head are rows of the same task and share
// every load of K and V. Causal rows end at their own token: pages beyond are not touched.
//
// Where there are fewer tasks than threads (decode of a model with few KV heads) the tokens are split in chunks of
// kChunkPages. Sums over tokens are always taken per chunk and combined in chunk order, split or not, so the bits of
// a row depend neither on threads nor on how many rows were asked for at once.
#pragma once
#include <cstdint>

#include "kernels/attention/attention.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {

struct AttentionProblem {
  const float* q;  // row (b * tokens + t): heads * channels floats, head after head
  int64_t q_stride;
  float* out;  // same shape as q
  int64_t out_stride;
  int64_t batch, tokens, heads;
  layout::LayerPages pages;
  const int32_t* page_table;  // [batch][table_stride]
  int64_t table_stride;
  const int32_t* past;  // [batch]: tokens cached before this call; query t is token past + t
  const uint8_t* mask;  // null: causal. Else bytes, != 0 attends, last dimension contiguous
  int64_t mask_batch_stride, mask_head_stride, mask_token_stride;
  float scale, soft_cap;  // soft_cap 0: none
  int64_t longest;        // the largest past + tokens

  int64_t group() const { return heads / pages.heads; }
  int64_t length(int64_t b) const { return past[b] + tokens; }
};

// Buffers and cut of one problem for one team size. Make it before the parallel region; run() inside it.
class Attention {
 public:
  Attention(const AttentionProblem& problem, int threads);
  void plan(runtime::Carver& carver);
  // For queries and results that themselves live in scratch, and are known only once it is laid out.
  void bind(const float* q, int64_t q_stride, float* out, int64_t out_stride);
  // Every member of the team calls this; results are complete after the next barrier of the team.
  void run(const runtime::Team& team);

 private:
  struct Block;  // the rows of one task
  Block block_of(int64_t task, int slot) const;
  void gather_queries(const Block& block) const;
  void score_pages(const Block& block, int64_t first_page, int64_t last_page) const;
  void normalise_row(const Block& block, int64_t row) const;
  void chunk_values(const Block& block, int64_t chunk, float* acc) const;
  void write_rows(const Block& block) const;
  void run_whole(const runtime::Team& team);
  void run_split(const runtime::Team& team);

  AttentionProblem problem_;
  kernels::AttentionKernels kernels_;
  int threads_;
  bool split_;
  int64_t block_tokens_, blocks_, tasks_, rows_, padded_, chunks_;
  float *queries_ = nullptr, *scores_ = nullptr, *partial_ = nullptr, *sums_ = nullptr;
  int64_t* limits_ = nullptr;
  runtime::TaskCounter counter_;
};

}  // namespace torch_cpullm::drivers
