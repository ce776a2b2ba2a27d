#include "drivers/sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "drivers/nucleus.h"
#include "layout/float16.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {
namespace {

using kernels::kScoreBlock;
using kernels::kScoreLanes;
using kernels::SampleKernels;

int64_t whole_lanes(int64_t n) { return (n + kScoreLanes - 1) / kScoreLanes * kScoreLanes; }
int64_t blocks_of(int64_t n) { return (n + kScoreBlock - 1) / kScoreBlock; }

// A thread's memory for one row: 12 bytes a token.
struct RowScratch {
  float *scores, *chosen, *lane_maxima, *sums;
  int32_t* positions;
  int64_t room, blocks;

  void plan(runtime::Carver& carver, int64_t vocabulary, int64_t members) {
    room = whole_lanes(vocabulary) + kScoreLanes;
    blocks = blocks_of(room);
    scores = carver.take<float>(members * room);
    chosen = carver.take<float>(members * room);
    positions = carver.take<int32_t>(members * room);
    lane_maxima = carver.take<float>(members * blocks * kScoreLanes);
    sums = carver.take<float>(members * blocks);
  }
  RowScratch of(int64_t member) const {
    return {scores + member * room,
            chosen + member * room,
            lane_maxima + member * blocks * kScoreLanes,
            sums + member * blocks,
            positions + member * room,
            room,
            blocks};
  }
};

// The scores that are still in the race, and their token ids where these are not their positions.
struct Field {
  float* scores;
  const int32_t* ids;
  int64_t n;  // whole lanes
  float largest;
};

float value_at(layout::ConstElements x, int64_t i) {
  if (x.type == layout::Element::f32) return static_cast<const float*>(x.data)[i];
  if (x.type == layout::Element::f16) return to_float(static_cast<const layout::float16*>(x.data)[i]);
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(x.data)[i]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// From the original logits, so that an id that comes twice is penalised once.
void penalise(const SampleProblem& problem, layout::ConstElements row, const int64_t* ids, float* scores) {
  const float penalty = problem.filters.repetition_penalty, temperature = problem.filters.temperature;
  for (int64_t s = 0; s < problem.seen; ++s) {
    const float x = value_at(row, ids[s]);
    scores[ids[s]] = (x < 0.0f ? x * penalty : x / penalty) / temperature;
  }
}

// A border that at least k and at most about k + slack scores reach; the largest one that k reach where slack is 0.
// -Inf where fewer than k are above it.
float border_of(const SampleKernels& kernels, const float* scores, int64_t n, float largest, int64_t k, int64_t slack) {
  int64_t low = key_of(-INFINITY), high = key_of(largest) + 1;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2, reach = kernels.count(scores, n, score_of(middle));
    (reach < k ? high : low) = middle;
    if (reach >= k && reach - k <= slack) break;
  }
  return score_of(low);
}

// The k-th largest of the maxima of disjoint sets is reached by k scores at least, and by few more where sets are much
// more than k: 51 for k = 50 of 2016 sets. So 32 halvings go over 1/64 of the scores and over what is then gathered.
// What is kept lies side by side: the sums that follow are the same for a row of nothing but candidates.
Field keep_top_k(const SampleKernels& kernels, const Field& field, const RowScratch& scratch, int64_t k) {
  const int64_t sets = blocks_of(field.n) * kScoreLanes;
  const float rough = 4 * k <= sets ? border_of(kernels, scratch.lane_maxima, sets, field.largest, k, k / 8)
                                    : border_of(kernels, field.scores, field.n, field.largest, k, k / 8);
  if (rough == -INFINITY) return field;
  const int64_t found = kernels.gather(field.scores, field.n, rough, INFINITY, scratch.chosen, scratch.positions);
  const float border = border_of(kernels, scratch.chosen, whole_lanes(found), field.largest, k, 0);
  int64_t kept = 0;
  for (int64_t i = 0; i < found; ++i) {
    if (scratch.chosen[i] < border) continue;
    scratch.chosen[kept] = scratch.chosen[i];
    scratch.positions[kept++] = scratch.positions[i];
  }
  std::fill(scratch.chosen + kept, scratch.chosen + whole_lanes(kept), -INFINITY);
  return {scratch.chosen, scratch.positions, whole_lanes(kept), field.largest};
}

// Returns the border; ties that have to go are made -Inf.
float keep_top_p(const SampleKernels& kernels, const Field& field, const RowScratch& scratch, double top_p) {
  const bool is_chosen = field.scores == scratch.chosen;
  const Nucleus nucleus =
      find_nucleus(kernels, field.scores, field.n, field.largest, top_p, is_chosen ? scratch.scores : scratch.chosen);
  for (int64_t i = 0, left = nucleus.dropped; left > 0 && i < field.n; ++i) {
    if (field.scores[i] != nucleus.border) continue;
    field.scores[i] = -INFINITY;
    --left;
  }
  return std::min(nucleus.border, field.largest);
}

// The first token at which the cumulative sum of the weights is above uniform times their sum.
int64_t draw(const SampleKernels& kernels, const Field& field, const RowScratch& scratch, float border,
             double uniform) {
  kernels.block_masses(field.scores, field.n, field.largest, border, scratch.sums);
  const int64_t blocks = blocks_of(field.n);
  double mass = 0.0, before = 0.0, reached = 0.0;
  for (int64_t b = 0; b < blocks; ++b) mass += static_cast<double>(scratch.sums[b]);
  const double target = uniform * mass;
  int64_t block = 0;
  for (int64_t b = 0; b < blocks && reached <= target; ++b) {
    if (scratch.sums[b] == 0.0f) continue;
    block = b;
    before = reached;
    reached += static_cast<double>(scratch.sums[b]);
  }
  float weight[kScoreBlock];
  const int64_t start = block * kScoreBlock, width = std::min(kScoreBlock, field.n - start);
  kernels.weights(field.scores + start, width, field.largest, border, weight);
  int64_t token = 0;
  for (int64_t i = 0; i < width && before <= target; ++i) {
    if (weight[i] == 0.0f) continue;
    token = start + i;
    before += static_cast<double>(weight[i]);
  }
  return field.ids ? field.ids[token] : token;
}

int64_t sample_row(const SampleKernels& kernels, const SampleProblem& problem, int64_t b, const RowScratch& scratch) {
  const SampleFilters& filters = problem.filters;
  const layout::ConstElements row = problem.logits.from(b * problem.stride);
  kernels.scale(row, problem.vocabulary, filters.temperature, scratch.scores);
  if (problem.ids) penalise(problem, row, problem.ids + b * problem.seen, scratch.scores);
  Field field{scratch.scores, nullptr, whole_lanes(problem.vocabulary), 0.0f};
  const kernels::Peak peak = kernels.maxima(field.scores, field.n, scratch.lane_maxima);
  if (std::isnan(peak.poison)) return kUnsoundRow;
  if (peak.largest == -INFINITY) return kEmptyRow;
  field.largest = peak.largest;

  float border = -INFINITY;
  if (filters.top_k > 0 && filters.top_k < problem.vocabulary)
    field = keep_top_k(kernels, field, scratch, filters.top_k);
  if (filters.top_p < 1.0) border = keep_top_p(kernels, field, scratch, filters.top_p);
  if (filters.min_p > 0.0) {
    const double lowest = static_cast<double>(field.largest) + std::log(filters.min_p);
    const float rounded = static_cast<float>(lowest);  // to the nearest; the border is the first float not below it
    border = std::max(border, static_cast<double>(rounded) < lowest ? std::nextafter(rounded, INFINITY) : rounded);
  }
  return draw(kernels, field, scratch, border, problem.uniform[b]);
}

}  // namespace

void sample(const SampleProblem& problem, int64_t* tokens, int threads) {
  const int64_t members = std::clamp<int64_t>(problem.rows, 1, std::max(threads, 1));
  const SampleKernels& kernels = kernels::sample_kernels();
  RowScratch scratch;
  runtime::with_scratch([&](runtime::Carver& carver) { scratch.plan(carver, problem.vocabulary, members); },
                        [&] {
                          runtime::parallel(static_cast<int>(members), [&](const runtime::Team& team) {
                            const RowScratch own = scratch.of(team.rank);
                            const runtime::Range mine = team.share(problem.rows);
                            for (int64_t b = mine.begin; b < mine.end; ++b)
                              tokens[b] = sample_row(kernels, problem, b, own);
                          });
                        });
}

}  // namespace torch_cpullm::drivers
