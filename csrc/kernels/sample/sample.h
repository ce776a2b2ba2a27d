// Contract of the sampling kernels: passes over the scores of one row. Who calls which, and why, is in
// drivers/sample.cpp.
//
// Scores are floats of the row's own scratch: n of them, n a multiple of kScoreLanes, filled up with -Inf; no NaN, no
// +Inf. Only `scale` and `maxima` meet what came from outside. What a pass writes has room for kScoreLanes more than it
// says, because chosen lanes are stored as whole vectors. A kernel adds in one order: 16 interleaved lanes in float32
// over a block, folded by halves; blocks in float64, ascending.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/element.h"

namespace torch_cpullm::kernels {

constexpr int64_t kScoreLanes = 16;
// Scores of a block: 64 vectors. A lane then adds 64 floats, error at most 64 * 2^-24 = 4e-6 and 2e-7 as a rule, and a
// row of 128256 has 126 sums to look through.
constexpr int64_t kScoreBlock = 1024;
// Borders of one pass over the masses: eight sums fit the 32 registers of AVX-512 beside borders and the exponential.
constexpr int kBorders = 8;

// Of a row: its largest score, and NaN where any score is NaN or +Inf (else 0).
struct Peak {
  float largest, poison;
};

struct SampleKernels {
  // out[i] = x[i] / temperature, divided and not multiplied by an inverse: transformers' scores, bit for bit. -Inf
  // from n to the next multiple of kScoreLanes.
  void (*scale)(layout::ConstElements x, int64_t n, float temperature, float* out);

  // out[16 b + l] = the largest score of block b in lane l; -Inf for lanes the last block does not have.
  Peak (*maxima)(const float* scores, int64_t n, float* out);

  // How many scores are >= border.
  int64_t (*count)(const float* scores, int64_t n, float border);

  // The scores in [low, high), in order, filled up with -Inf to a multiple of kScoreLanes, and where each of them was
  // (positions may be null). Returns how many. out may be scores.
  int64_t (*gather)(const float* scores, int64_t n, float low, float high, float* out, int32_t* positions);

  // out[j] = sum of exp(score - largest) over the scores >= borders[j].
  void (*masses)(const float* scores, int64_t n, float largest, const float* borders, double* out);

  // out[b] = sum of exp(score - largest) over the scores >= border of block b.
  void (*block_masses)(const float* scores, int64_t n, float largest, float border, float* out);

  // out[i] = exp(score - largest) where score >= border, else 0.
  void (*weights)(const float* scores, int64_t n, float largest, float border, float* out);
};

const SampleKernels& sample_kernels();

namespace scalar {
extern const SampleKernels sample;
}
namespace avx2 {
extern const SampleKernels sample;
}
namespace avx512 {
extern const SampleKernels sample;
}

}  // namespace torch_cpullm::kernels
