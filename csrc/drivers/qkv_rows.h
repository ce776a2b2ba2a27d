// Rows of q, k and v as a projection gives them, and where their heads stand:
//
//   in order   | query heads | key heads | value heads |
//   in groups  | query heads of KV head 0, its key, its value | those of KV head 1 | ...
#pragma once
#include <cstring>

#include "drivers/attention_problem.h"
#include "drivers/norm.h"

namespace torch_cpullm::drivers {

struct QkvRows {
  bool in_groups = false;
  bool rope_pairs = false;  // channels (i, i + 1) turn together, not (i, i + rotary / 2)
  Norm query_norm, key_norm;
  const float *cos, *sin;  // [batch or 1][tokens][rotary]
  int64_t rotary, rope_batch_stride;

  // Head norms and rope on q and k of one row, k and v into the pages; then the row begins with the query heads in
  // order.
  void finish(const AttentionProblem& problem, const kernels::RowwiseKernels& kernels, int64_t row, float* qkv) const {
    const layout::LayerPages& pages = problem.pages;
    const int64_t channels = pages.channels, b = row / problem.tokens, t = row % problem.tokens;
    const int64_t at = b * rope_batch_stride + t * rotary;
    const auto turn = [&](float* x, const Norm& norm) {
      if (norm) norm.run(kernels, layout::floats(x), channels, x);
      (rope_pairs ? kernels.rope_pairs : kernels.rope)(x, cos + at, sin + at, rotary);
    };
    const int64_t each = problem.group(), value_behind = (in_groups ? 1 : pages.heads) * channels;
    const int64_t position = problem.past[b] + t;
    const int32_t page = problem.page_table[b * problem.table_stride + position / layout::kPageTokens];
    for (int64_t g = 0; g < pages.heads; ++g) {
      float* key = qkv + (in_groups ? g * (each + 2) + each : problem.heads + g) * channels;
      turn(key, key_norm);
      kernels.kv_store(key, key + value_behind, channels, pages.format, pages.head(page, g),
                       position % layout::kPageTokens);
    }
    if (t == problem.tokens - 1) pages.close(page, position, problem.past[b]);
    for (int64_t head = 0; head < problem.heads; ++head) {
      const int64_t place = in_groups ? head / each * (each + 2) + head % each : head;
      float* query = qkv + place * channels;
      turn(query, query_norm);
      // Over keys and values that are in the pages by now.
      if (place != head) std::memcpy(qkv + head * channels, query, static_cast<size_t>(channels) * sizeof(float));
    }
  }
};

}  // namespace torch_cpullm::drivers
