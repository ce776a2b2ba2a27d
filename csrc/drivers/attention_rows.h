// One task of attention: some query tokens of one sequence with all query heads of one KV head.
//
// Rows are ordered token-major: row r is token first_token + r / group, query head kv_head * group + r % group.
#pragma once
#include "drivers/attention_problem.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {

enum class Method : uint8_t { slim, flash };

struct RowBlock {
  int64_t b, kv_head, first_token, tokens;
  Method method;
  int64_t first_chunk, end_chunk;  // that a row may see
};

// The largest block of a problem: what buffers are made for.
struct BlockShape {
  int64_t rows = 0, chunks = 0, score_tokens = 0, slim_chunks = 0;
};

// Floats from a row of scores to the next: a line more than the scores, or rows of a tile would meet in few cache sets.
constexpr int64_t score_stride(int64_t chunks) { return chunks * layout::kChunkTokens + 16; }

// What a chunk leaves behind, per row: sums of p and of p * V, where p = 2^(score - shift).
struct ChunkSums {
  float* value;  // [rows][channels]
  float* weight;
  float* shift;  // whole numbers: the peak, less what makes the value scales fit
  float* peak;   // the row's largest score, rounded up; -infinity: it sees nothing of the chunk, or only NaN

  ChunkSums at(int64_t chunk, int64_t rows, int64_t channels) const {
    return {value + chunk * rows * channels, weight + chunk * rows, shift + chunk * rows, peak + chunk * rows};
  }
};
void take_sums(runtime::Carver& carver, int64_t rows, int64_t channels, ChunkSums& sums);

// Working memory of one thread.
struct BlockBuffers {
  uint8_t *queries, *weights;
  int32_t *query_sum, *weight_sum;
  float *factor, *scores;
  kernels::RowRange* seen;
  const uint8_t **keys, **values;          // of the block's pages
  float *key_scale, *value_scale, *sound;  // of a chunk
  uint8_t* keep;                           // the tree's bits of a row, spread
  float* peaks;                            // slim: [chunks][rows]
  ChunkSums part, total;

  void plan(runtime::Carver& carver, const AttentionProblem& problem, const BlockShape& shape);
};

class BlockAttention {
 public:
  BlockAttention(const AttentionProblem& problem, const RowBlock& block, const BlockBuffers& buffers);

  // The whole task, results into the problem's out.
  void run();
  // Or chunk by chunk, in any order and on any thread: prepare(), then chunks; and when all are there, gather() adds
  // them up in order. `rows`: how many each chunk's sums have room for.
  void prepare();
  void run_chunk(int64_t chunk, const ChunkSums& sums);
  void gather(const ChunkSums& chunks, int64_t rows);

 private:
  void find_ranges();
  void encode_queries();
  void find_pages();
  void load_scales(int64_t chunk);
  void score_chunk(int64_t chunk, float* scores, int64_t stride);
  kernels::RowScores row_scores(int64_t row, int64_t chunk, float* scores, int64_t stride) const;
  float shift_for(int64_t row, int64_t chunk, float peak) const;
  void sum_chunk(int64_t chunk, float* scores, int64_t stride, const ChunkSums& sums);
  void run_slim();
  void run_flash();
  void clear_total();
  void add_to_total(const ChunkSums& part);
  void write_rows();

  const AttentionProblem& problem_;
  const RowBlock& block_;
  const BlockBuffers& buffers_;
  const kernels::AttentionProducts& products_;
  const kernels::AttentionPasses& passes_;
  int64_t rows_, channels_, group_;
  int64_t first_, end_;  // chunks that a row sees
  bool altered_;
  bool sound_ = true;  // of the loaded chunk
};

}  // namespace torch_cpullm::drivers
