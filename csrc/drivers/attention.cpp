#include "drivers/attention.h"

#include <algorithm>
#include <cstring>

namespace torch_cpullm::drivers {
namespace {

using layout::ceil_div;
using layout::kChunkPages;
using layout::kPageTokens;

// At least two tall score tiles a block where there are that many rows, so that K is widened for 24 rows and not for
// one, even where 24 rows of scores exceed half the L2 (from 5461 tokens on with 1 MiB); at most 192 (a block's queries
// and accumulators then still fit beside the scores).
constexpr int64_t kFewestRows = 24, kMostRows = 192;

int64_t tokens_per_block(const AttentionProblem& problem, int64_t padded) {
  const int64_t fitting = dispatch::l2_bytes() / 2 / (padded * static_cast<int64_t>(sizeof(float)));
  const int64_t rows = std::clamp(fitting, kFewestRows, kMostRows);
  return std::clamp<int64_t>(rows / problem.group(), 1, problem.tokens);
}

}  // namespace

// Rows are ordered token-major: row r is token first_token + r / group, query head kv_head * group + r % group.
struct Attention::Block {
  int64_t b, kv_head, first_token, rows, limit;
  float *queries, *scores, *partial, *sums;
  int64_t* limits;  // per row: tokens it may see
};

Attention::Attention(const AttentionProblem& problem, int threads)
    : problem_(problem), kernels_(kernels::attention_kernels()), threads_(threads) {
  padded_ = ceil_div(problem.longest, kPageTokens) * kPageTokens;
  chunks_ = ceil_div(padded_, kPageTokens * kChunkPages);
  block_tokens_ = tokens_per_block(problem, padded_);
  blocks_ = ceil_div(problem.tokens, block_tokens_);
  tasks_ = problem.batch * problem.pages.heads * blocks_;
  rows_ = block_tokens_ * problem.group();
  split_ = tasks_ < threads && chunks_ > 1;
}

void Attention::plan(runtime::Carver& carver) {
  // Whole tasks: one slot a thread, one accumulator a row and one for the chunk. Split: every task and chunk at once.
  const int64_t slots = split_ ? tasks_ : threads_;
  const int64_t accumulators = split_ ? chunks_ + 1 : 2;
  queries_ = carver.take<float>(slots * rows_ * problem_.pages.channels);
  scores_ = carver.take<float>(slots * rows_ * padded_);
  partial_ = carver.take<float>(slots * accumulators * rows_ * problem_.pages.channels);
  sums_ = carver.take<float>(slots * rows_);
  limits_ = carver.take<int64_t>(slots * rows_);
}

void Attention::bind(const float* q, int64_t q_stride, float* out, int64_t out_stride) {
  problem_.q = q;
  problem_.q_stride = q_stride;
  problem_.out = out;
  problem_.out_stride = out_stride;
}

Attention::Block Attention::block_of(int64_t task, int slot) const {
  const int64_t channels = problem_.pages.channels;
  Block block;
  // Last token blocks first: under a causal mask they are the longest, and the short ones fill the gaps at the end.
  const int64_t index = blocks_ - 1 - task / (problem_.batch * problem_.pages.heads);
  const int64_t pair = task % (problem_.batch * problem_.pages.heads);
  block.b = pair / problem_.pages.heads;
  block.kv_head = pair % problem_.pages.heads;
  block.first_token = index * block_tokens_;
  block.rows = std::min(block_tokens_, problem_.tokens - block.first_token) * problem_.group();
  block.queries = queries_ + slot * rows_ * channels;
  block.scores = scores_ + slot * rows_ * padded_;
  block.partial = partial_ + slot * (split_ ? chunks_ + 1 : 2) * rows_ * channels;
  block.sums = sums_ + slot * rows_;
  block.limits = limits_ + slot * rows_;
  block.limit = 0;
  return block;
}

void Attention::gather_queries(const Block& block) const {
  const int64_t channels = problem_.pages.channels, group = problem_.group();
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t token = block.first_token + r / group, head = block.kv_head * group + r % group;
    const float* q = problem_.q + (block.b * problem_.tokens + token) * problem_.q_stride + head * channels;
    for (int64_t c = 0; c < channels; ++c) block.queries[r * channels + c] = q[c] * problem_.scale;
    int64_t limit = problem_.mask ? problem_.length(block.b) : problem_.past[block.b] + token + 1;
    if (problem_.mask) {
      const uint8_t* keep = problem_.mask + block.b * problem_.mask_batch_stride + head * problem_.mask_head_stride +
                            token * problem_.mask_token_stride;
      while (limit > 0 && !keep[limit - 1]) --limit;
    }
    block.limits[r] = limit;
  }
}

void Attention::score_pages(const Block& block, int64_t first_page, int64_t last_page) const {
  const auto& pages = problem_.pages;
  const int32_t* table = problem_.page_table + block.b * problem_.table_stride;
  const auto kernel = kernels_.scores[static_cast<int>(pages.format)];
  for (int64_t page = first_page; page < last_page; ++page) {
    for (int64_t r = 0; r < block.rows; r += kernels_.score_rows) {
      const int64_t rows = std::min<int64_t>(kernels_.score_rows, block.rows - r);
      if (*std::max_element(block.limits + r, block.limits + r + rows) <= page * kPageTokens) continue;
      kernel({block.queries + r * pages.channels, pages.channels, pages.head(table[page], block.kv_head),
              pages.channels, block.scores + r * padded_ + page * kPageTokens, padded_, static_cast<int>(rows)});
    }
  }
}

void Attention::normalise_row(const Block& block, int64_t row) const {
  const int64_t limit = block.limits[row], used = ceil_div(limit, kPageTokens) * kPageTokens;
  float* s = block.scores + row * padded_;
  const auto& pages = problem_.pages;
  if (problem_.soft_cap > 0.0f) kernels_.soft_cap(s, used, problem_.soft_cap);
  const uint8_t* keep = nullptr;
  if (problem_.mask) {
    const int64_t group = problem_.group(), head = block.kv_head * group + row % group;
    keep = problem_.mask + block.b * problem_.mask_batch_stride + head * problem_.mask_head_stride +
           (block.first_token + row / group) * problem_.mask_token_stride;
  }
  block.sums[row] = kernels_.softmax(s, limit, used, keep);
  const int32_t* table = problem_.page_table + block.b * problem_.table_stride;
  for (int64_t page = 0; page * kPageTokens < used; ++page) {
    const uint8_t* head = pages.head(table[page], block.kv_head);
    kernels_.fold_value_scale(
        s + page * kPageTokens,
        reinterpret_cast<const float*>(head + layout::value_scale_offset(pages.format, pages.channels)));
  }
  // A tile of rows is multiplied as far as its longest row: zeros make the shorter ones whole.
  std::memset(s + used, 0, static_cast<size_t>(padded_ - used) * sizeof(float));
}

void Attention::chunk_values(const Block& block, int64_t chunk, float* acc) const {
  const auto& pages = problem_.pages;
  const int32_t* table = problem_.page_table + block.b * problem_.table_stride;
  const auto kernel = kernels_.values[static_cast<int>(pages.format)];
  std::memset(acc, 0, static_cast<size_t>(block.rows * pages.channels) * sizeof(float));
  for (int64_t page = chunk * kChunkPages; page < (chunk + 1) * kChunkPages; ++page) {
    for (int64_t r = 0; r < block.rows; r += kernels_.value_rows) {
      const int64_t rows = std::min<int64_t>(kernels_.value_rows, block.rows - r);
      const int64_t tokens = *std::max_element(block.limits + r, block.limits + r + rows) - page * kPageTokens;
      if (tokens <= 0) continue;
      kernel({block.scores + r * padded_ + page * kPageTokens, padded_, pages.head(table[page], block.kv_head),
              pages.channels, std::min(tokens, kPageTokens), acc + r * pages.channels, pages.channels,
              static_cast<int>(rows)});
    }
  }
}

void Attention::write_rows(const Block& block) const {
  const int64_t channels = problem_.pages.channels, group = problem_.group();
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t token = block.first_token + r / group, head = block.kv_head * group + r % group;
    float* out = problem_.out + (block.b * problem_.tokens + token) * problem_.out_stride + head * channels;
    const float inverse = block.sums[r] == 0.0f ? 0.0f : 1.0f / block.sums[r];
    for (int64_t c = 0; c < channels; ++c) out[c] = block.partial[r * channels + c] * inverse;
  }
}

void Attention::run_whole(const runtime::Team& team) {
  for (int64_t task = counter_.take(); task < tasks_; task = counter_.take()) {
    Block block = block_of(task, team.rank);
    gather_queries(block);
    block.limit = *std::max_element(block.limits, block.limits + block.rows);
    score_pages(block, 0, ceil_div(block.limit, kPageTokens));
    for (int64_t r = 0; r < block.rows; ++r) normalise_row(block, r);
    const int64_t floats = block.rows * problem_.pages.channels;
    float *total = block.partial, *chunk_sum = block.partial + rows_ * problem_.pages.channels;
    std::memset(total, 0, static_cast<size_t>(floats) * sizeof(float));
    for (int64_t chunk = 0; chunk * kChunkPages * kPageTokens < block.limit; ++chunk) {
      chunk_values(block, chunk, chunk_sum);
      for (int64_t i = 0; i < floats; ++i) total[i] += chunk_sum[i];
    }
    write_rows(block);
  }
}

void Attention::run_split(const runtime::Team& team) {
  const int64_t channels = problem_.pages.channels;
  const runtime::Range mine = team.share(tasks_ * chunks_);
  // Phase by phase, each cut evenly: queries and limits, scores by chunk, rows, values by chunk, sums in chunk order.
  for (int64_t task = team.rank; task < tasks_; task += team.size)
    gather_queries(block_of(task, static_cast<int>(task)));
  team.barrier();
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const Block block = block_of(i / chunks_, static_cast<int>(i / chunks_));
    const int64_t limit = *std::max_element(block.limits, block.limits + block.rows), first = i % chunks_ * kChunkPages;
    score_pages(block, first, std::min(first + kChunkPages, ceil_div(limit, kPageTokens)));
  }
  team.barrier();
  const runtime::Range rows = team.share(tasks_ * rows_);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const Block block = block_of(i / rows_, static_cast<int>(i / rows_));
    if (i % rows_ < block.rows) normalise_row(block, i % rows_);
  }
  team.barrier();
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const Block block = block_of(i / chunks_, static_cast<int>(i / chunks_));
    chunk_values(block, i % chunks_, block.partial + (1 + i % chunks_) * rows_ * channels);
  }
  team.barrier();
  for (int64_t task = team.rank; task < tasks_; task += team.size) {
    const Block block = block_of(task, static_cast<int>(task));
    const int64_t limit = *std::max_element(block.limits, block.limits + block.rows);
    std::memset(block.partial, 0, static_cast<size_t>(block.rows * channels) * sizeof(float));
    for (int64_t chunk = 0; chunk * kChunkPages * kPageTokens < limit; ++chunk)
      for (int64_t i = 0; i < block.rows * channels; ++i)
        block.partial[i] += block.partial[(1 + chunk) * rows_ * channels + i];
    write_rows(block);
  }
}

void Attention::run(const runtime::Team& team) { split_ ? run_split(team) : run_whole(team); }

}  // namespace torch_cpullm::drivers
