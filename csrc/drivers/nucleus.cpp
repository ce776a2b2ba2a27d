#include "drivers/nucleus.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

namespace torch_cpullm::drivers {
namespace {

using kernels::kBorders;
using kernels::kScoreLanes;

// As many scores are sorted: a pass over four vectors gains nothing any more.
constexpr int64_t kSorted = 64;
// Even steps in score suit logits; from this round on they are even in key, which ends after 13 rounds (32 bits, a
// factor of 6 a round) however the scores lie.
constexpr int kEvenRounds = 4;
// Borders of the first round, below the largest score. Below 88 a weight is 0 (isa/math.h), so the first one gives the
// mass of all. Steps of 2 and not of 1: normal logits of deviation 3 end at 8 to 10 and took 282 us instead of 145.
constexpr float kFirstBorders[kBorders] = {88.0f, 14.0f, 12.0f, 10.0f, 8.0f, 6.0f, 4.0f, 2.0f};

struct Interval {
  float low, high;  // the border is in [low, high)
  double above;     // mass of the scores >= high
};

// Six even steps, and around one of the scores a bin of its own: where many are equal (bf16 has 256 numbers between two
// powers of two) that is soon the bin that holds the border. A row of 128256 equal logits took 1000 us without it.
void cut(const Interval& interval, float score, int round, float* borders) {
  constexpr int kSteps = kBorders - 2;
  const int64_t low = key_of(interval.low), width = key_of(interval.high) - low;
  for (int j = 0; j < kSteps; ++j) {
    const float even = interval.low + (interval.high - interval.low) * (static_cast<float>(j) / kSteps);
    borders[j] = round < kEvenRounds ? even : score_of(low + width * j / kSteps);
  }
  borders[kSteps] = score;
  borders[kSteps + 1] = std::nextafter(score, INFINITY);
  std::sort(borders, borders + kBorders);
}

// The bin of the interval that holds the border: the last one down to which the mass reaches `target`.
Interval narrowed(const Interval& interval, const float* borders, const double* masses, double target) {
  int j = kBorders - 1;
  while (j > 0 && interval.above + masses[j] < target) --j;
  if (j == kBorders - 1) return {borders[j], interval.high, interval.above};
  return {borders[j], borders[j + 1], interval.above + masses[j + 1]};
}

// The last few, sorted and taken one by one while the mass before them is below the target.
Nucleus finish(const kernels::SampleKernels& kernels, float* scores, int64_t n, float largest, double above,
               double target) {
  float weight[kSorted];
  std::sort(scores, scores + n, std::greater<float>());
  kernels.weights(scores, (n + kScoreLanes - 1) / kScoreLanes * kScoreLanes, largest, scores[n - 1], weight);
  int64_t kept = 0;
  for (double mass = above; kept < n && (mass < target || kept == 0); ++kept) mass += static_cast<double>(weight[kept]);
  const float border = scores[kept - 1];
  const auto equal = [&](float score) { return score == border; };
  return {border, std::count_if(scores, scores + kept, equal), std::count_if(scores + kept, scores + n, equal)};
}

// The same for any number of equal scores.
Nucleus finish_equal(const kernels::SampleKernels& kernels, const float* scores, int64_t n, float largest, double above,
                     double target) {
  float weight[kScoreLanes];
  kernels.weights(scores, kScoreLanes, largest, scores[0], weight);
  const double wanted = weight[0] > 0.0f ? std::ceil((target - above) / static_cast<double>(weight[0])) : 0.0;
  const int64_t ties = static_cast<int64_t>(std::clamp(wanted, 1.0, static_cast<double>(n)));
  return {scores[0], ties, n - ties};
}

}  // namespace

int64_t key_of(float score) {
  int32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

float score_of(int64_t key) {
  const auto word = static_cast<int32_t>(key);
  const int32_t bits = word < 0 ? word ^ 0x7fffffff : word;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

Nucleus find_nucleus(const kernels::SampleKernels& kernels, const float* scores, int64_t n, float largest, double top_p,
                     float* buffer) {
  float borders[kBorders];
  double masses[kBorders];
  for (int j = 0; j < kBorders; ++j) borders[j] = largest - kFirstBorders[j];
  kernels.masses(scores, n, largest, borders, masses);
  const double target = std::max(top_p * masses[0], 1e-300);  // above 0: one token stays even for a top_p of 0
  Interval interval = narrowed({borders[0], std::nextafter(largest, INFINITY), 0.0}, borders, masses, target);
  int64_t left = kernels.gather(scores, n, interval.low, interval.high, buffer, nullptr);
  for (int round = 1; left > kSorted && key_of(interval.high) - key_of(interval.low) > 1; ++round) {
    const int64_t filled = (left + kScoreLanes - 1) / kScoreLanes * kScoreLanes;
    cut(interval, buffer[left / 2], round, borders);
    kernels.masses(buffer, filled, largest, borders, masses);
    interval = narrowed(interval, borders, masses, target);
    left = kernels.gather(buffer, filled, interval.low, interval.high, buffer, nullptr);
  }
  if (left == 0) return {interval.high, 0, 0};  // sums in another order reached the target just above
  if (left > kSorted) return finish_equal(kernels, buffer, left, largest, interval.above, target);
  return finish(kernels, buffer, left, largest, interval.above, target);
}

}  // namespace torch_cpullm::drivers
