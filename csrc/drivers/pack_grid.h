// The grid a group of weights is rounded to when it is packed: its scale, and what belongs to it.
//
// Scales of two levels (layout/panel.h): the step is the largest magnitude of a block over 120, so that it lies on
// multiplier 15 times code 8. On the bundled model's weights, groups of 32, that leaves 8.31 % of error, an f16 scale
// for each group 8.23 %, and the best of four steps 8.24 % for four times the work.
#pragma once
#include <cstdint>

#include "kernels/quantize/quantize.h"
#include "layout/panel.h"

namespace torch_cpullm::drivers {

// The largest multiplier times the largest code.
constexpr float kMostOfStep = 8.0f * layout::kMostMultiplier;

// NaN where any value is not finite.
float magnitude(const kernels::Extremes& range);
// As the layout stores it.
kernels::Grid rounded(kernels::Grid grid);
// Of groups with f16 scales: int8's absmax / 127, for asymmetric int4 that of five candidates with the least error.
kernels::Grid best_grid(const layout::WeightFormat& format, const kernels::QuantizeKernels& kernels, const float* x,
                        int64_t width);

// Two levels. A block's step, as f16 holds it: 0 for zeros, NaN for what is not finite.
float best_step(const kernels::QuantizeKernels& kernels, const float* block, int64_t width);
// That of five multipliers of a group that has the least error; 0 for zeros only.
int best_multiplier(const kernels::QuantizeKernels& kernels, const float* x, int64_t width, float step);
// The step of which all given scales are whole multiples up to 15; where there is none, the largest scale over 15.
float step_of(const float* scales, int64_t count);
int multiplier_of(float scale, float step);
kernels::Grid level_grid(int multiplier, float step);

}  // namespace torch_cpullm::drivers
