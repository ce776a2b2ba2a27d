// The queries of one task of attention as rows, and what each of them sees.
//
// Rows are ordered token-major: row r is token first_token + r / group, query head kv_head * group + r % group.
#pragma once
#include "drivers/attention_problem.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {

enum class Method : uint8_t { slim, flash };

// A task: some query tokens of one sequence with all query heads of one KV head.
struct RowBlock {
  int64_t b, kv_head, first_token, tokens;
  Method method;
  int64_t first_chunk, end_chunk;  // that a row may see
  int64_t pages;                   // of these chunks; the last one may have fewer than kChunkPages

  // Tasks of other heads beside this one make a band. Its items are chunks, all heads of the first one and so on; this
  // is how many of them lie before page `x` of the band's `heads * pages`.
  int64_t items_before(int64_t x, int64_t heads) const {
    const int64_t whole = (end_chunk - first_chunk - 1) * heads, last = pages - whole / heads * layout::kChunkPages;
    if (x <= whole * layout::kChunkPages) return layout::ceil_div(x, layout::kChunkPages);
    return whole + layout::ceil_div(x - whole * layout::kChunkPages, last);
  }
};

struct QueryRows {
  uint8_t* encoded;
  int32_t* sum;
  float* factor;
  kernels::RowRange* seen;         // absolute tokens
  uint8_t* gaps;                   // whether the mask hides some of these
  int64_t first_chunk, end_chunk;  // that some row sees

  void plan(runtime::Carver& carver, const AttentionProblem& problem, int64_t rows);
  void find_ranges(const AttentionProblem& problem, const RowBlock& block);
  // Those of `rows` rows of another head, where heads share their mask.
  void take_ranges(const QueryRows& other, int64_t rows);
  void encode(const AttentionProblem& problem, const RowBlock& block);
};

}  // namespace torch_cpullm::drivers
