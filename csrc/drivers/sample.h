// One token for each row of logits: penalty, temperature, top-k, top-p, min-p, and a draw, in that order.
//
//   scale      x / temperature into the row's scratch, then the penalised ids once more from the original logits
//   top-k      a border that a few more than k reach, from lane maxima; those gathered, and the border made exact
//   top-p      the interval of scores in which the nucleus ends, cut by eight until it is down to a few tokens
//   min-p      a border: the largest score + log(min_p)
//   draw       masses of blocks, the block that holds uniform * mass, the token in it
//
// No sort, and what is left gets smaller with every step. A row belongs to one thread.
#pragma once
#include <cstdint>

#include "layout/element.h"

namespace torch_cpullm::drivers {

// What each of them does not filter: 1, 0 (or all), 1, 0, 1.
struct SampleFilters {
  float temperature;
  int64_t top_k;
  double top_p, min_p;
  float repetition_penalty;
};

struct SampleProblem {
  layout::ConstElements logits;  // row b starts at b * stride
  int64_t rows, vocabulary, stride;
  const int64_t* ids;  // [rows][seen], each in [0, vocabulary); null: none
  int64_t seen;
  const double* uniform;  // [rows], in [0, 1)
  SampleFilters filters;
};

// Instead of a token: the row has NaN or +Inf, or nothing but -Inf, after penalty and temperature.
constexpr int64_t kUnsoundRow = -1, kEmptyRow = -2;

void sample(const SampleProblem& problem, int64_t* tokens, int threads);

}  // namespace torch_cpullm::drivers
