// Attention over the paged KV pool, from one decoded token to a long prefill, by two methods with the same bits:
//
//   slim   SlimAttention (arXiv 2407.07304, section 2.2): a task computes whole score rows S[rows, tokens], takes one
//          softmax per row with its true maximum, and multiplies by V once.
//   flash  FlashAttention (arXiv 2205.14135): a task goes chunk by chunk of tokens with a running maximum, and rescales
//          what it has.
//
// A task is (sequence, KV head, block of query tokens); all query heads of a KV head are rows of the same task and
// share every load of K and V. Pages that no row of a tile sees are not touched.
//
// Sums are taken per chunk (layout::kChunkTokens) and added in chunk order, with shifts that are powers of two
// (kernels/attention/passes_body.h): the bits of a row depend neither on the method, nor on threads, nor on how many
// rows were asked for at once. Where tasks are too few or too uneven for the threads, or are bound by reading, chunks
// are their unit of work.
#pragma once
#include <vector>

#include "drivers/attention_rows.h"
#include "runtime/parallel.h"

namespace torch_cpullm::drivers {

// Query tokens up to this place in their sequence go by the slim method, those behind by flash; 0: all by flash. A
// matter of speed only, measured per machine (torch_cpullm/machine/tuning.py).
constexpr int64_t kDefaultSlimTokens = 0;
void set_slim_tokens(int64_t tokens);
int64_t slim_tokens();

// The cut of one problem for one team size. Make it before the parallel region; run() inside it.
class Attention {
 public:
  Attention(const AttentionProblem& problem, int threads);
  void plan(runtime::Carver& carver);
  // For queries and results that themselves live in scratch, and are known only once it is laid out.
  void bind(layout::ConstElements q, int64_t q_stride, layout::Elements out, int64_t out_stride);
  // Every member of the team calls this; results are complete after the next barrier of the team.
  void run(const runtime::Team& team);

 private:
  void cut();
  void run_split(const runtime::Team& team, BlockBuffers& buffers);
  void run_band(size_t band, runtime::Range items, BlockBuffers& buffers);

  AttentionProblem problem_;
  int threads_;
  bool split_ = false;
  BlockShape shape_;
  std::vector<RowBlock> tasks_;        // the costliest first; in bands of all KV heads of a block of query tokens
  std::vector<int64_t> first_item_;    // split: chunks of the tasks before; one more at the end, of all
  std::vector<BlockBuffers> buffers_;  // of each thread
  ChunkSums sums_;                     // split: of every chunk
  runtime::TaskCounter counter_;
};

}  // namespace torch_cpullm::drivers
