// One matrix product y[rows][N] = x[rows][K] * W^T + bias, as two phases of a parallel region:
//
//   prepare   rows are shared out:   x -> codes, scales and sums (int8), bf16 pairs, or a padded copy (f32)
//   (barrier)
//   multiply  panels are shared out: every member multiplies all rows with its panels
//
// Cut of multiply: panels x blocks of rows. What happens inside is the kernel's (kernels/linear/linear.h). Where a
// block of rows takes at most half of L2 it stays there while all panels pass, else a panel stays while all rows pass.
// With AMX such rows are cut along K as well: run 0 of a chunk of panels, run 1 of the same, then their sums are done.
// Prepared rows lie in blocks of K, rows of a block side by side: with whole rows side by side, a K that is a multiple
// of 4096 puts the rows of a tile into one set of the L1, and 16 rows took twice the time.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/linear/linear.h"
#include "kernels/rowwise/rowwise.h"
#include "layout/packed.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {

// The rows of one operand in the form a packed weight wants. Weights with the same_input() may share it.
class PreparedRows {
 public:
  PreparedRows(const layout::PackedView& weight, int64_t rows);
  void plan(runtime::Carver& carver);
  int64_t blocks() const { return blocks_; }
  // Blocks `share` of one row: several members of a team may prepare one row together.
  void prepare(int64_t row, layout::ConstElements x, runtime::Range share) const;
  // This member's share of all rows, row r being x.from(r * depth).
  void prepare_all(const runtime::Team& team, layout::ConstElements x) const;

 private:
  friend class Linear;
  using PrepareFn = void (*)(layout::ConstElements, const float*, int64_t, const kernels::ActRow&);

  const float* multiplier_;
  layout::Activation activation_;
  int64_t depth_, rows_, blocks_, sums_;
  PrepareFn fn_;
  uint8_t* values_ = nullptr;
  float* scale_ = nullptr;
  int32_t* sum_ = nullptr;
};

// Where a product goes: out[row * stride + n] = product (+ add[row * stride + n]).
struct Destination {
  layout::Elements out;
  int64_t stride;
  const float* add = nullptr;
};

class Linear {
 public:
  Linear(const layout::PackedView& weight, int64_t rows, int threads);
  void plan(runtime::Carver& carver);
  void multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to);

 private:
  void multiply_panels(runtime::Range panels, int64_t first_row, int64_t rows, const PreparedRows& x, int rank,
                       const Destination& to) const;
  void multiply_expanded(kernels::LinearPanel tile, uint8_t* bf16) const;

  layout::PackedView weight_;
  bool expands_;  // a quantised weight with bf16 activations
  kernels::LinearFn kernel_;
  kernels::ExpandFn expand_;
  kernels::FinishFn finish_;
  int64_t rows_;
  int threads_;
  int64_t run_;        // blocks of K at a time
  int64_t chunk_ = 1;  // panels that a task multiplies with its rows, run by run
  int64_t block_rows_;
  float* sums_ = nullptr;    // [threads][chunk_][block_rows_][64]
  uint8_t* bf16_ = nullptr;  // [threads][32 KiB]: one block of 256 k
  runtime::TaskCounter counter_;
};

// Several weights applied to the same rows, their outputs side by side: q, k and v, or gate and up.
class LinearGroup {
 public:
  LinearGroup(const std::vector<layout::PackedView>& weights, int64_t rows, int threads);
  void plan(runtime::Carver& carver);
  void multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to);
  int64_t columns() const { return columns_; }

 private:
  std::vector<Linear> members_;
  std::vector<int64_t> offsets_;
  int64_t columns_ = 0;
};

// The whole op: x and y are contiguous rows.
void run_linear(const layout::PackedView& weight, layout::ConstElements x, int64_t rows, layout::Elements y,
                int threads);

}  // namespace torch_cpullm::drivers
