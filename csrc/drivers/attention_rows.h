// One task of attention, chunk by chunk of tokens.
#pragma once
#include <vector>

#include "drivers/query_rows.h"

namespace torch_cpullm::drivers {

// The largest block of a problem: what buffers are made for.
struct BlockShape {
  int64_t rows = 0, chunks = 0, score_tokens = 0, slim_chunks = 0;
  int64_t query_sets = 1;  // how many blocks' queries are kept at a time
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
  std::vector<QueryRows> queries;
  const uint8_t** pages;  // of the block's chunks and one more: where the layer starts in each
  uint8_t* weights;
  int32_t* weight_sum;
  float* scores;
  float *key_scale, *value_scale, *sound;  // of a chunk
  uint8_t* keep;                           // the tree's bits of a row, spread
  float* peaks;                            // slim: [chunks][rows]
  ChunkSums part, total;

  void plan(runtime::Carver& carver, const AttentionProblem& problem, const BlockShape& shape);
};

class BlockAttention {
 public:
  BlockAttention(const AttentionProblem& problem, const RowBlock& block, const BlockBuffers& buffers,
                 const QueryRows& queries);

  // The whole task, results into the problem's out. Before it, find_pages(), and the queries are there.
  void run();
  // Or chunk by chunk, in any order and on any thread; and when all are there, gather() adds them up in order. `next`:
  // the head's pages of the chunk that will follow. `rows`: how many each chunk's sums have room for.
  void run_chunk(int64_t chunk, const kernels::PageParts& next, const ChunkSums& sums);
  void gather(const ChunkSums& chunks, int64_t rows);

  // Pages of the block's chunks, for all heads.
  void find_pages();
  // A chunk's parts of pages, `offset` bytes behind the start of the head.
  kernels::PageParts parts(int64_t chunk, int64_t offset = 0) const;

 private:
  int64_t pages_in(int64_t chunk) const;
  void load_scales(int64_t chunk, const kernels::PageParts& next);
  void score_chunk(int64_t chunk, const kernels::PageParts& next, float* scores, int64_t stride);
  kernels::RowScores row_scores(int64_t row, int64_t chunk, float* scores, int64_t stride) const;
  float weight_bits(int64_t tokens) const;
  void sum_chunk(int64_t chunk, const kernels::PageParts& next, float* scores, int64_t stride, const ChunkSums& sums);
  void run_slim();
  void run_flash();
  void clear_total();
  void add_to_total(const ChunkSums& part);
  void write_rows();

  const AttentionProblem& problem_;
  const RowBlock& block_;
  const BlockBuffers& buffers_;
  const QueryRows& queries_;
  const kernels::AttentionProducts& products_;
  const kernels::AttentionPasses& passes_;
  int64_t rows_, channels_, group_;
  bool altered_;
  bool sound_ = true;  // of the loaded chunk
};

}  // namespace torch_cpullm::drivers
