// One matrix product y[rows][N] = x[rows][K] * W^T + bias, as two phases of a parallel region:
//
//   prepare   rows are shared out:   x -> codes, scales and sums (int8), bf16 pairs, or a padded copy (f32)
//   (barrier)
//   multiply  panels are shared out: every member multiplies all rows with its panels
//
// Cut of multiply: panels x blocks of kBlockRows rows; inside, K in runs of kBlockSteps steps, so that 32 KiB of panel
// stay in L1/L2 while the rows pass. Sums leave the registers at run borders only; that changes no bit (linear.h).
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/linear/linear.h"
#include "kernels/rowwise/rowwise.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {

// 120 rows = 20 tiles of 6: their 64-column sums are 30 KiB, and each byte of panel is used 20 times per load.
constexpr int64_t kBlockRows = 120;
// 128 steps = 32 KiB of panel, two thirds of a 48 KiB L1; a multiple of the steps of an activation group.
constexpr int64_t kBlockSteps = 128;
static_assert(kBlockSteps % kernels::kStepsPerGroup == 0);

// The rows of one operand in the form a packed format wants. Several weights of that format and depth may share it.
class PreparedRows {
 public:
  PreparedRows(layout::Format format, int64_t rows, int64_t depth);
  void plan(runtime::Carver& carver);
  void prepare(int64_t row, const float* x) const;

 private:
  friend class Linear;
  layout::Format format_;
  int64_t depth_, rows_, stride_, groups_;
  const kernels::RowwiseKernels& kernels_;
  uint8_t* values_ = nullptr;
  float* scale_ = nullptr;
  int32_t* sum_ = nullptr;
};

// Where a product goes: out[row * stride + n] = product (+ add[row * stride + n]).
struct Destination {
  float* out;
  int64_t stride;
  const float* add = nullptr;
};

class Linear {
 public:
  Linear(const layout::PackedView& weight, int64_t rows, int threads);
  void plan(runtime::Carver& carver);
  void multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to);

 private:
  void multiply_panel(int64_t panel, int64_t first_row, int64_t rows, const PreparedRows& x, float* sums,
                      const Destination& to) const;

  layout::PackedView weight_;
  kernels::LinearKernel kernel_;
  int64_t rows_;
  int threads_;
  float* sums_ = nullptr;  // [threads][kBlockRows][64]
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

// The whole op: x and y are rows of floats.
void run_linear(const layout::PackedView& weight, const float* x, int64_t rows, float* y, int threads);

}  // namespace torch_cpullm::drivers
