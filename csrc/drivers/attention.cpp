#include "drivers/attention.h"

#include <algorithm>
#include <atomic>

namespace torch_cpullm::drivers {
namespace {

using layout::ceil_div;
using layout::kChunkTokens;
using layout::kPageTokens;

std::atomic<int64_t> slim_up_to{kDefaultSlimTokens};

// At least two tall tiles of rows a block where there are that many, so that a page is loaded for 24 rows and not for
// one, even where 24 whole rows of scores exceed half the L2 (from 5461 tokens on with 1 MiB).
constexpr int64_t kFewestRows = 24, kMostRows = 192;

int64_t rows_in_l2(int64_t row_bytes) {
  return std::clamp<int64_t>(dispatch::l2_bytes() / 2 / row_bytes, kFewestRows, kMostRows);
}

// So few rows take longer to read pages than to multiply them: the heads' parts of the same pages, which lie side by
// side, are then read one after the other.
constexpr int64_t kStreamedRows = 8;

// Of a row in a block, besides its scores: sums of a chunk and in all, weights, query.
int64_t bytes_beside_scores(int64_t channels) { return 3 * channels * 4 + kChunkTokens * 4; }

}  // namespace

void set_slim_tokens(int64_t tokens) { slim_up_to.store(tokens, std::memory_order_relaxed); }
int64_t slim_tokens() { return slim_up_to.load(std::memory_order_relaxed); }

Attention::Attention(const AttentionProblem& problem, int threads) : problem_(problem), threads_(threads) {
  problem_.products = &kernels::attention_products(problem.pages.format);
  problem_.passes = &kernels::attention_passes();
  cut();
  const auto cost = [](const RowBlock& block) { return block.tokens * (block.end_chunk - block.first_chunk); };
  std::stable_sort(tasks_.begin(), tasks_.end(),
                   [&](const RowBlock& a, const RowBlock& b) { return cost(a) > cost(b); });
  // What the threads would get, task after task to the one with least.
  std::vector<int64_t> loads(static_cast<size_t>(threads));
  int64_t total = 0;
  for (const RowBlock& block : tasks_) {
    *std::min_element(loads.begin(), loads.end()) += cost(block);
    total += cost(block);
  }
  const bool uneven = *std::max_element(loads.begin(), loads.end()) * threads > total * 9 / 8;
  split_ = uneven || (shape_.rows <= kStreamedRows && shape_.chunks > 1);
  if (!split_) return;
  shape_.query_sets = problem_.pages.heads;
  int64_t chunks = 0;
  for (const RowBlock& block : tasks_) {
    first_item_.push_back(chunks);
    chunks += block.end_chunk - block.first_chunk;
  }
  first_item_.push_back(chunks);
}

// Blocks of query tokens that share a method: it goes by the token's place in its sequence.
void Attention::cut() {
  const int64_t channels = problem_.pages.channels, group = problem_.group(), limit = slim_tokens();
  shape_.score_tokens = score_stride(1);
  for (int64_t b = 0; b < problem_.batch; ++b) {
    const int64_t past = problem_.past[b];
    // One token's chunks are best read as they come, keys and values.
    const int64_t slim = problem_.tokens == 1 ? 0 : std::clamp<int64_t>(limit - past, 0, problem_.tokens);
    const int64_t longest = ceil_div(past + slim, kChunkTokens) * kChunkTokens;
    const int64_t slim_block = rows_in_l2(longest * 4 + bytes_beside_scores(channels)) / group;
    const int64_t flash_block = rows_in_l2(kChunkTokens * 4 + bytes_beside_scores(channels)) / group;
    for (int64_t token = 0; token < problem_.tokens;) {
      const bool is_slim = token < slim;
      const int64_t most = std::max<int64_t>(is_slim ? slim_block : flash_block, 1);
      const int64_t count = std::min(most, (is_slim ? slim : problem_.tokens) - token);
      const int64_t seen_end = problem_.causal() ? past + token + count : problem_.length(b);
      const int64_t seen_begin = problem_.window > 0 ? std::max<int64_t>(past + token + 1 - problem_.window, 0) : 0;
      const RowBlock block{b,
                           0,
                           token,
                           count,
                           is_slim ? Method::slim : Method::flash,
                           seen_begin / kChunkTokens,
                           ceil_div(seen_end, kChunkTokens),
                           ceil_div(seen_end, kPageTokens) - seen_begin / kChunkTokens * layout::kChunkPages};
      const int64_t chunks = block.end_chunk - block.first_chunk;
      shape_.rows = std::max(shape_.rows, count * group);
      shape_.chunks = std::max(shape_.chunks, chunks);
      if (is_slim) {
        shape_.score_tokens = std::max(shape_.score_tokens, score_stride(chunks));
        shape_.slim_chunks = std::max(shape_.slim_chunks, chunks);
      }
      for (int64_t head = 0; head < problem_.pages.heads; ++head) {
        tasks_.push_back(block);
        tasks_.back().kv_head = head;
      }
      token += count;
    }
  }
}

void Attention::plan(runtime::Carver& carver) {
  buffers_.resize(static_cast<size_t>(threads_));
  for (BlockBuffers& buffers : buffers_) buffers.plan(carver, problem_, shape_);
  if (split_) take_sums(carver, first_item_.back() * shape_.rows, problem_.pages.channels, sums_);
}

void Attention::bind(layout::ConstElements q, int64_t q_stride, layout::Elements out, int64_t out_stride) {
  problem_.q = q;
  problem_.q_stride = q_stride;
  problem_.out = out;
  problem_.out_stride = out_stride;
}

void Attention::run(const runtime::Team& team) {
  BlockBuffers& buffers = buffers_[static_cast<size_t>(team.rank)];
  if (split_) return run_split(team, buffers);
  const auto count = static_cast<int64_t>(tasks_.size());
  QueryRows& queries = buffers.queries[0];
  for (int64_t task = counter_.take(); task < count; task = counter_.take()) {
    const RowBlock& block = tasks_[static_cast<size_t>(task)];
    queries.find_ranges(problem_, block);
    queries.encode(problem_, block);
    BlockAttention run(problem_, block, buffers, queries);
    run.find_pages();
    run.run();
  }
}

// Chunks are shared out in the order in which they lie in memory: all heads of the first chunk, then of the next one.
void Attention::run_split(const runtime::Team& team, BlockBuffers& buffers) {
  const int64_t heads = problem_.pages.heads;
  const auto step = static_cast<size_t>(heads);
  int64_t pages = 0;
  for (size_t band = 0; band < tasks_.size(); band += step) pages += heads * tasks_[band].pages;
  const runtime::Range mine = team.share(pages);
  int64_t before = 0;
  for (size_t band = 0; band < tasks_.size(); band += step) {
    const RowBlock& block = tasks_[band];
    const auto items_before = [&](int64_t x) {
      return block.items_before(std::clamp<int64_t>(x - before, 0, heads * block.pages), heads);
    };
    const runtime::Range items{items_before(mine.begin), items_before(mine.end)};
    if (items.begin < items.end) run_band(band, items, buffers);
    before += heads * block.pages;
  }
  team.barrier();
  QueryRows& queries = buffers.queries[0];
  for (size_t task = static_cast<size_t>(team.rank); task < tasks_.size(); task += static_cast<size_t>(team.size)) {
    queries.find_ranges(problem_, tasks_[task]);
    BlockAttention(problem_, tasks_[task], buffers, queries)
        .gather(sums_.at(first_item_[task], shape_.rows, problem_.pages.channels), shape_.rows);
  }
}

// `items`: chunks of the band's heads, head by head within a chunk.
void Attention::run_band(size_t band, runtime::Range items, BlockBuffers& buffers) {
  const int64_t heads = problem_.pages.heads;
  const auto attention = [&](int64_t head) {
    const auto h = static_cast<size_t>(head);
    return BlockAttention(problem_, tasks_[band + h], buffers, buffers.queries[h]);
  };
  const auto first = static_cast<size_t>(items.begin % heads);
  for (int64_t head = 0; head < std::min(heads, items.end - items.begin); ++head) {
    const auto h = static_cast<size_t>((items.begin + head) % heads);
    QueryRows& queries = buffers.queries[h];
    if (h == first || problem_.mask_head_stride != 0)
      queries.find_ranges(problem_, tasks_[band + h]);
    else
      queries.take_ranges(buffers.queries[first], tasks_[band].tokens * problem_.group());
    queries.encode(problem_, tasks_[band + h]);
  }
  attention(0).find_pages();
  const int64_t first_chunk = tasks_[band].first_chunk;
  for (int64_t item = items.begin; item < items.end; ++item) {
    const int64_t chunk = item / heads, head = item % heads, next = std::min(item + 1, items.end - 1);
    attention(head).run_chunk(
        first_chunk + chunk, attention(next % heads).parts(first_chunk + next / heads),
        sums_.at(first_item_[band + static_cast<size_t>(head)] + chunk, shape_.rows, problem_.pages.channels));
  }
}

}  // namespace torch_cpullm::drivers
