#include "drivers/attention_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace torch_cpullm::drivers {
namespace {

using kernels::kLog2E;
using kernels::PageParts;
using kernels::RowLayout;
using layout::ceil_div;
using layout::kChunkPages;
using layout::kChunkTokens;
using layout::kPageTokens;

// Weights against int8 pages are whole numbers up to 127 * 128 + 127; a little less, for what rounding adds.
constexpr float kWeightPeak = 16000.0f;

// 2^k for a whole k; 0 where that would be denormal.
float power_of_two(float k) { return k < -126.0f ? 0.0f : std::ldexp(1.0f, static_cast<int>(k)); }

}  // namespace

void take_sums(runtime::Carver& carver, int64_t rows, int64_t channels, ChunkSums& sums) {
  sums.value = carver.take<float>(rows * channels);
  sums.weight = carver.take<float>(rows);
  sums.shift = carver.take<float>(rows);
  sums.peak = carver.take<float>(rows);
}

void BlockBuffers::plan(runtime::Carver& carver, const AttentionProblem& problem, const BlockShape& shape) {
  const int64_t rows = shape.rows, channels = problem.pages.channels;
  queries.resize(static_cast<size_t>(shape.query_sets));
  for (QueryRows& set : queries) set.plan(carver, problem, rows);
  pages = carver.take<const uint8_t*>((shape.chunks + 1) * kChunkPages);
  weights = carver.take<uint8_t>(rows * RowLayout(problem.pages.format, kChunkTokens).bytes);
  weight_sum = carver.take<int32_t>(rows);
  scores = carver.take<float>(rows * shape.score_tokens);
  key_scale = carver.take<float>(kChunkTokens);
  value_scale = carver.take<float>(kChunkTokens);
  sound = carver.take<float>(kChunkTokens);
  keep = carver.take<uint8_t>(kChunkTokens);
  peaks = carver.take<float>(rows * shape.slim_chunks);
  take_sums(carver, rows, channels, part);
  take_sums(carver, rows, channels, total);
}

BlockAttention::BlockAttention(const AttentionProblem& problem, const RowBlock& block, const BlockBuffers& buffers,
                               const QueryRows& queries)
    : problem_(problem),
      block_(block),
      buffers_(buffers),
      queries_(queries),
      products_(*problem.products),
      passes_(*problem.passes),
      rows_(block.tokens * problem.group()),
      channels_(problem.pages.channels),
      group_(problem.group()),
      altered_(problem.soft_cap > 0.0f || problem.slopes || problem.bias || problem.tree) {}

void BlockAttention::find_pages() {
  const int32_t* table = problem_.page_table + block_.b * problem_.table_stride;
  const int64_t first = block_.first_chunk * kChunkPages, room = (block_.end_chunk + 1) * kChunkPages - first;
  const int64_t count = std::min(room, ceil_div(problem_.length(block_.b), kPageTokens) - first);
  // Behind the last page: it is prefetched once more, and not multiplied.
  for (int64_t i = 0; i < room; ++i) buffers_.pages[i] = problem_.pages.head(table[first + std::min(i, count - 1)], 0);
}

PageParts BlockAttention::parts(int64_t chunk, int64_t offset) const {
  const int64_t head = block_.kv_head * layout::head_bytes(problem_.pages.format, channels_);
  return {buffers_.pages + (chunk - block_.first_chunk) * kChunkPages, head + offset};
}

int64_t BlockAttention::pages_in(int64_t chunk) const {
  return std::min(kChunkPages, ceil_div(problem_.length(block_.b) - chunk * kChunkTokens, kPageTokens));
}

void BlockAttention::load_scales(int64_t chunk, const PageParts& next) {
  const int64_t offset = layout::key_scale_offset(problem_.pages.format, channels_);
  const PageParts scales = parts(chunk, offset);
  const int64_t used = pages_in(chunk);
  sound_ = true;
  for (int64_t page = 0; page < used; ++page) {
    // The scales of a head lie side by side, of keys and then of values.
    const auto* from = reinterpret_cast<const float*>(scales[page]);
    for (int64_t line = 0; line < 2 * kPageTokens * 4; line += 64) __builtin_prefetch(next[page] + offset + line, 0, 2);
    passes_.take_scales(from, kPageTokens, buffers_.key_scale + page * kPageTokens);
    sound_ &= passes_.take_scales(from + kPageTokens, kPageTokens, buffers_.value_scale + page * kPageTokens);
  }
  if (sound_) return;
  for (int64_t t = 0; t < used * kPageTokens; ++t) {
    const bool bad = std::isnan(buffers_.value_scale[t]);
    buffers_.sound[t] = bad ? NAN : 1.0f;
    if (bad) buffers_.value_scale[t] = 0.0f;
  }
}

void BlockAttention::score_chunk(int64_t chunk, const PageParts& next, float* scores, int64_t stride) {
  products_.scores({{queries_.encoded, RowLayout(problem_.pages.format, channels_), rows_, queries_.sum, queries_.seen},
                    queries_.factor,
                    parts(chunk),
                    {next, 0},
                    chunk * kChunkTokens,
                    pages_in(chunk),
                    channels_,
                    scores,
                    stride});
}

kernels::RowScores BlockAttention::row_scores(int64_t row, int64_t chunk, float* scores, int64_t stride) const {
  const int64_t first = chunk * kChunkTokens, token = block_.first_token + row / group_;
  const int64_t head = block_.kv_head * group_ + row % group_;
  const int64_t offset = block_.b * problem_.mask_batch_stride + head * problem_.mask_head_stride +
                         token * problem_.mask_token_stride + first;
  kernels::RowScores out{};
  out.s = scores + row * stride;
  out.begin = std::clamp<int64_t>(queries_.seen[row].begin - first, 0, kChunkTokens);
  out.end = std::clamp<int64_t>(queries_.seen[row].end - first, out.begin, kChunkTokens);
  if (out.begin == out.end) out.begin = out.end = 0;
  out.key_scale = buffers_.key_scale;
  out.value_scale = buffers_.value_scale;
  out.sound = sound_ ? nullptr : buffers_.sound;
  out.altered = altered_ || queries_.gaps[row];
  if (!out.altered) return out;
  out.soft_cap = problem_.soft_cap;
  out.slope = problem_.slopes ? problem_.slopes[head] : 0.0f;
  out.position = problem_.past[block_.b] + token - first;
  if (problem_.bias) out.bias = problem_.bias + offset;
  if (queries_.gaps[row]) out.keep = problem_.mask + offset;
  if (problem_.tree && out.end > problem_.past[block_.b] - first) {
    const auto bits = static_cast<uint64_t>(problem_.tree[block_.b * problem_.tokens + token]);
    for (int64_t t = 0; t < out.end; ++t) {
      const int64_t node = first + t - problem_.past[block_.b];
      buffers_.keep[t] = node < 0 || (bits >> node & 1);
    }
    out.keep = buffers_.keep;
  }
  return out;
}

// Weights against int8 pages are rounded to whole numbers: the powers of two that use all of their bits, for the value
// scales of `tokens` tokens of the chunk.
float BlockAttention::weight_bits(int64_t tokens) const {
  if (problem_.pages.format != layout::Format::int8) return 0.0f;
  const float scale = passes_.largest_scale(buffers_.value_scale, tokens);
  return scale > 0.0f ? static_cast<float>(std::clamp(std::ilogb(kWeightPeak / scale), -100, 60)) : 0.0f;
}

// From scores to sums: one chunk's weights and their product with the values. Fills in all but the peaks.
void BlockAttention::sum_chunk(int64_t chunk, const PageParts& next, float* scores, int64_t stride,
                               const ChunkSums& sums) {
  const layout::Format format = problem_.pages.format;
  const RowLayout layout(format, kChunkTokens);
  const auto weigh = passes_.weigh[static_cast<int>(format)];
  // Values of the next chunk are fetched by weighing rows, page by page as far as the rows go, and then by the product.
  const int64_t value_offset = layout::value_offset(format, channels_), page_lines = value_offset / layout::kLineBytes;
  const PageParts ahead{next.pages, next.offset + value_offset};
  const int64_t page_rows = ceil_div(page_lines, kernels::kWeighLines);
  const int64_t pages = pages_in(chunk), weighed_pages = std::min(pages, rows_ / page_rows);
  int64_t tokens = -1;
  float bits = 0.0f;
  for (int64_t r = 0; r < rows_; ++r) {
    // Up to the row's own last token: what comes later must not change a bit.
    const int64_t end = std::clamp<int64_t>(queries_.seen[r].end - chunk * kChunkTokens, 0, kChunkTokens);
    if (end != tokens) bits = weight_bits(tokens = end);
    // Nothing to see, or nothing but NaN, which any shift brings out.
    const float peak = sums.peak[r] == -INFINITY ? 0.0f : sums.peak[r];
    sums.shift[r] = peak - bits;
    kernels::RowScores row = row_scores(r, chunk, scores, stride);
    if (r / page_rows < weighed_pages) {
      const int64_t line = r % page_rows * kernels::kWeighLines;
      row.ahead = ahead[r / page_rows] + line * layout::kLineBytes;
      row.ahead_lines = std::min(kernels::kWeighLines, page_lines - line);
    }
    sums.weight[r] = weigh(row, sums.shift[r], buffers_.weights + r * layout.bytes, buffers_.weight_sum + r);
  }
  products_.values({{buffers_.weights, layout, rows_, buffers_.weight_sum, queries_.seen},
                    parts(chunk, value_offset),
                    {ahead, weighed_pages},
                    chunk * kChunkTokens,
                    pages,
                    channels_,
                    sums.value,
                    channels_});
}

void BlockAttention::clear_total() {
  const ChunkSums& total = buffers_.total;
  std::memset(total.value, 0, static_cast<size_t>(rows_ * channels_) * sizeof(float));
  std::fill_n(total.weight, rows_, 0.0f);
  std::fill_n(total.peak, rows_, -INFINITY);
}

// The total's peak is the largest known so far; with the true one known from the start nothing is ever rescaled.
void BlockAttention::add_to_total(const ChunkSums& part) {
  const ChunkSums& total = buffers_.total;
  for (int64_t r = 0; r < rows_; ++r) {
    if (!std::isfinite(part.peak[r])) {
      total.weight[r] += part.peak[r] == -INFINITY ? part.weight[r] : NAN;
      continue;
    }
    const float peak = std::max(total.peak[r], part.peak[r]);
    const float before = total.peak[r] == -INFINITY ? 1.0f : power_of_two(total.peak[r] - peak);
    const float now = power_of_two(part.shift[r] - peak);
    passes_.combine(total.value + r * channels_, before, part.value + r * channels_, now, channels_);
    total.weight[r] = total.weight[r] * before + part.weight[r] * now;
    total.peak[r] = peak;
  }
}

void BlockAttention::write_rows() {
  const ChunkSums& total = buffers_.total;
  for (int64_t r = 0; r < rows_; ++r) {
    const int64_t token = block_.first_token + r / group_, head = block_.kv_head * group_ + r % group_;
    const int64_t place = (block_.b * problem_.tokens + token) * problem_.out_stride + head * channels_;
    float weight = total.weight[r], before = 1.0f;
    const bool sees = queries_.seen[r].begin < queries_.seen[r].end;
    if (weight == 0.0f && sees) weight = NAN;  // all that it sees scores -inf
    if (problem_.sinks) {
      const float sink = problem_.sinks[head] * kLog2E, peak = std::max(total.peak[r], std::ceil(sink));
      if (total.peak[r] != -INFINITY) before = power_of_two(total.peak[r] - peak);
      weight = weight * before + std::exp2(sink - peak);
    }
    passes_.finish(total.value + r * channels_, weight == 0.0f ? 0.0f : before / weight, channels_,
                   problem_.out.from(place));
  }
}

void BlockAttention::run_slim() {
  const int64_t stride = score_stride(queries_.end_chunk - queries_.first_chunk);
  const ChunkSums &total = buffers_.total, &part = buffers_.part;
  for (int64_t chunk = queries_.first_chunk; chunk < queries_.end_chunk; ++chunk) {
    const int64_t index = chunk - queries_.first_chunk;
    float* scores = buffers_.scores + index * kChunkTokens;
    load_scales(chunk, parts(chunk + 1));
    score_chunk(chunk, parts(chunk + 1), scores, stride);
    for (int64_t r = 0; r < rows_; ++r) {
      const float peak = std::ceil(passes_.largest(row_scores(r, chunk, scores, stride)));
      buffers_.peaks[index * rows_ + r] = peak;
      if (peak > total.peak[r]) total.peak[r] = peak;
    }
  }
  for (int64_t chunk = queries_.first_chunk; chunk < queries_.end_chunk; ++chunk) {
    const int64_t index = chunk - queries_.first_chunk;
    load_scales(chunk, parts(chunk + 1));
    std::copy_n(buffers_.peaks + index * rows_, rows_, part.peak);
    sum_chunk(chunk, parts(chunk + 1), buffers_.scores + index * kChunkTokens, stride, part);
    add_to_total(part);
  }
}

void BlockAttention::run_flash() {
  for (int64_t chunk = queries_.first_chunk; chunk < queries_.end_chunk; ++chunk) {
    run_chunk(chunk, parts(chunk + 1), buffers_.part);
    add_to_total(buffers_.part);
  }
}

void BlockAttention::run() {
  clear_total();
  block_.method == Method::slim ? run_slim() : run_flash();
  write_rows();
}

void BlockAttention::run_chunk(int64_t chunk, const PageParts& next, const ChunkSums& sums) {
  if (chunk < queries_.first_chunk || chunk >= queries_.end_chunk) {
    std::fill_n(sums.peak, rows_, -INFINITY);
    std::fill_n(sums.weight, rows_, 0.0f);
    return;
  }
  load_scales(chunk, next);
  constexpr int64_t kStride = score_stride(1);
  score_chunk(chunk, next, buffers_.scores, kStride);
  for (int64_t r = 0; r < rows_; ++r)
    sums.peak[r] = std::ceil(passes_.largest(row_scores(r, chunk, buffers_.scores, kStride)));
  sum_chunk(chunk, next, buffers_.scores, kStride, sums);
}

void BlockAttention::gather(const ChunkSums& chunks, int64_t rows) {
  clear_total();
  for (int64_t chunk = 0; chunk < block_.end_chunk - block_.first_chunk; ++chunk)
    add_to_total(chunks.at(chunk, rows, channels_));
  write_rows();
}

}  // namespace torch_cpullm::drivers
