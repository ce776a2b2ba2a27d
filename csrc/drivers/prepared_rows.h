// The rows of one operand in the form a packed weight wants: codes, scales and sums (int8), bf16 pairs, or a padded
// copy (f32). Weights with the same_input() may share them.
//
// They lie in blocks of K, rows of a block side by side: with whole rows side by side, a K that is a multiple of 4096
// puts the rows of a tile into one set of the L1, and 16 rows took twice the time.
#pragma once
#include <cstdint>

#include "kernels/rowwise/rowwise.h"
#include "layout/packed.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {

class PreparedRows {
 public:
  PreparedRows(const layout::PackedView& weight, int64_t rows);
  void plan(runtime::Carver& carver);
  // Some columns of one row, x being the first of them. They begin at a block, and end at one or with the row.
  void prepare(int64_t row, runtime::Range columns, layout::ConstElements x) const;
  // The columns of a member where a team prepares one row together: whole blocks.
  runtime::Range share(const runtime::Team& team) const;
  // This member's share of all rows, row r being x.from(r * depth).
  void prepare_all(const runtime::Team& team, layout::ConstElements x) const;

 private:
  friend class Panels;
  using PrepareFn = void (*)(layout::ConstElements, const float*, int64_t, const kernels::ActRow&);

  const float* multiplier_;
  layout::Activation activation_;
  int64_t depth_, rows_, blocks_, sums_;
  PrepareFn fn_;
  uint8_t* values_ = nullptr;
  float* scale_ = nullptr;
  int32_t* sum_ = nullptr;
};

}  // namespace torch_cpullm::drivers
