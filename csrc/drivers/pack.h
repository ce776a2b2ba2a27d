// Packing: weight[N][K] of any float type -> the bytes of layout/packed.h. Rows are read once where they lie and go
// through two rows of scratch a thread, so that no second copy of a weight is ever alive.
#pragma once
#include <cstdint>

#include "layout/element.h"
#include "layout/packed.h"

namespace torch_cpullm::drivers {

struct PackSource {
  layout::ConstElements weight;  // [columns][depth], contiguous
  int64_t columns, depth;
  const float* bias;        // [columns], or null
  const float* multiplier;  // [depth], positive and finite, or null: codes are of weight / multiplier
  // Scales and zeros that someone else has chosen, [columns][groups of K] (without groups: [columns][1]); or null: then
  // scales are absmax / 127 for int8; for int4 those of five candidates with the smallest squared error.
  const float *scale, *zero;
};

// Writes the whole block: packed_places(...).total bytes.
void pack_weight(const PackSource& source, const layout::WeightFormat& format, int threads, uint8_t* out);
// What padding holds: columns beyond N the code of zero and the scale 0.
void clear_panel(const layout::WeightFormat& format, int64_t padded, uint8_t* panel);
// Reads weight[columns][depth] back, dequantised.
void unpack_weight(const layout::PackedView& packed, int threads, float* weight);

}  // namespace torch_cpullm::drivers
