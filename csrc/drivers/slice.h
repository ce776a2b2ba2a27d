// A part of a packed weight, packed: what one rank of a tensor-parallel model holds of it. Nothing is rounded: codes,
// scales and zeros are copied, so that every value is the whole weight's, bit for bit.
//
//   whole   rows 0 .. N        part   ranges of rows, one behind the other (of q, k and v in one weight: three)
//           inputs 0 .. K             one range of inputs, cut where no two sides share a scale's storage
#pragma once
#include <cstdint>
#include <vector>

#include "layout/packed.h"
#include "runtime/parallel.h"

namespace torch_cpullm::drivers {

// Inputs may be cut at multiples of this, and at K: a line without groups, a group, or a block where groups share a
// step (layout/panel.h).
constexpr int64_t cut_unit(const layout::WeightFormat& format) {
  if (layout::has_two_levels(format)) return layout::block_depth(format.codes);
  return format.group ? format.group : layout::depth_per_line(format.codes);
}

struct PackedPart {
  std::vector<runtime::Range> rows;  // each inside 0 .. N, not empty
  runtime::Range inputs;             // inside 0 .. K, not empty, cut at multiples of cut_unit
  bool bias;                         // keep the bias, if there is one

  int64_t columns() const {
    int64_t sum = 0;
    for (const runtime::Range& range : rows) sum += range.end - range.begin;
    return sum;
  }
  int64_t depth() const { return inputs.end - inputs.begin; }
};

layout::PackedPlaces part_places(const layout::PackedView& whole, const PackedPart& part);
// Writes part_places(...).total bytes.
void slice_packed(const layout::PackedView& whole, const PackedPart& part, int threads, uint8_t* out);

}  // namespace torch_cpullm::drivers
