// Where the set of the most likely tokens whose mass reaches top_p ends.
#pragma once
#include <cstdint>

#include "kernels/sample/sample.h"

namespace torch_cpullm::drivers {

// Scores above `border` stay, and of those equal to it the last `ties` by position, all others go.
struct Nucleus {
  float border;
  int64_t ties, dropped;  // equal to the border: that stay, that go
};

// The scores as integers in the same order, and back. Both zeros are scores, -0.0 right below 0.0.
int64_t key_of(float score);
float score_of(int64_t key);

// Of n scores (kernels/sample/sample.h) the largest of which is `largest`; `buffer` holds n + kScoreLanes floats.
//
// A token stays exactly if the mass of all that are ranked before it is below top_p * (mass of all); of equal scores
// the later position is ranked first. It is the rule of transformers' TopPLogitsWarper, which sorts ascending and drops
// what has a cumulative sum of at most 1 - top_p; its sort is not stable, so which of equal scores stay is
// chance there.
Nucleus find_nucleus(const kernels::SampleKernels& kernels, const float* scores, int64_t n, float largest, double top_p,
                     float* buffer);

}  // namespace torch_cpullm::drivers
