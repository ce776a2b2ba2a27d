#include "drivers/query_rows.h"

#include <algorithm>
#include <cstring>

namespace torch_cpullm::drivers {
namespace {

using kernels::kLog2E;
using kernels::RowLayout;
using kernels::RowRange;
using layout::kChunkTokens;

// The part of [begin, end) between the first and the last token that is not hidden.
template <class Hidden>
RowRange trimmed(RowRange seen, const Hidden& hidden) {
  while (seen.begin < seen.end && hidden(seen.end - 1)) --seen.end;
  while (seen.begin < seen.end && hidden(seen.begin)) ++seen.begin;
  return seen;
}

}  // namespace

void QueryRows::plan(runtime::Carver& carver, const AttentionProblem& problem, int64_t rows) {
  encoded = carver.take<uint8_t>(rows * RowLayout(problem.pages.format, problem.pages.channels).bytes);
  sum = carver.take<int32_t>(rows);
  factor = carver.take<float>(rows);
  seen = carver.take<RowRange>(rows);
  gaps = carver.take<uint8_t>(rows);
}

void QueryRows::find_ranges(const AttentionProblem& problem, const RowBlock& block) {
  const int64_t past = problem.past[block.b], length = problem.length(block.b), group = problem.group();
  first_chunk = block.end_chunk;
  end_chunk = block.first_chunk;
  for (int64_t r = 0; r < block.tokens * group; ++r) {
    if (r % group > 0 && problem.mask_head_stride == 0) {
      seen[r] = seen[r - 1];
      gaps[r] = gaps[r - 1];
      continue;
    }
    const int64_t token = block.first_token + r / group, head = block.kv_head * group + r % group;
    const int64_t own = past + token + 1;
    RowRange range{0, problem.causal() ? own : length};
    const int64_t offset =
        block.b * problem.mask_batch_stride + head * problem.mask_head_stride + token * problem.mask_token_stride;
    if (problem.mask) range = trimmed(range, [&](int64_t t) { return problem.mask[offset + t] == 0; });
    if (problem.bias)
      range = trimmed(range, [&](int64_t t) { return problem.bias[offset + t] < kernels::kHiddenBelow; });
    if (problem.tree) {
      const auto bits = static_cast<uint64_t>(problem.tree[block.b * problem.tokens + token]);
      range = trimmed(range, [&](int64_t t) { return t >= past && !(bits >> (t - past) & 1); });
    }
    if (problem.window > 0) range.begin = std::max(range.begin, own - problem.window);
    if (range.begin >= range.end) range = {0, 0};
    seen[r] = range;
    gaps[r] = problem.mask && std::memchr(problem.mask + offset + range.begin, 0, range.end - range.begin);
    if (range.end == 0) continue;
    first_chunk = std::min(first_chunk, range.begin / kChunkTokens);
    end_chunk = std::max(end_chunk, layout::ceil_div(range.end, kChunkTokens));
  }
  end_chunk = std::max(end_chunk, first_chunk);
}

void QueryRows::take_ranges(const QueryRows& other, int64_t rows) {
  std::copy_n(other.seen, rows, seen);
  std::copy_n(other.gaps, rows, gaps);
  first_chunk = other.first_chunk;
  end_chunk = other.end_chunk;
}

void QueryRows::encode(const AttentionProblem& problem, const RowBlock& block) {
  if (first_chunk == end_chunk) return;
  const int64_t channels = problem.pages.channels, group = problem.group(), rows = block.tokens * group;
  const RowLayout layout(problem.pages.format, channels);
  const auto encode_row = problem.passes->encode[static_cast<int>(problem.pages.format)];
  const auto query = [&](int64_t r) {
    const int64_t token = block.first_token + r / group, head = block.kv_head * group + r % group;
    return problem.q.from((block.b * problem.tokens + token) * problem.q_stride + head * channels);
  };
  // Rows of a sequence are far apart: each is on a page of its own.
  constexpr int64_t kAheadRows = 6;
  for (int64_t r = 0; r < rows; ++r) {
    const layout::ConstElements next = query(std::min(r + kAheadRows, rows - 1));
    for (int64_t c = 0; c < channels; c += 16) __builtin_prefetch(next.from(c).data);
    factor[r] = encode_row(query(r), channels, encoded + r * layout.bytes, sum + r) * problem.scale * kLog2E;
  }
}

}  // namespace torch_cpullm::drivers
