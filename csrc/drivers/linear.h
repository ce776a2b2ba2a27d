// One matrix product y[rows][N] = x[rows][K] * W^T + bias, as two phases of a parallel region:
//
//   prepare   rows are shared out (prepared_rows.h)
//   (barrier)
//   multiply  panels are shared out: every member multiplies all rows with its panels (panels.h)
#pragma once
#include <cstdint>
#include <vector>

#include "drivers/panels.h"

namespace torch_cpullm::drivers {

class Linear {
 public:
  Linear(const layout::PackedView& weight, int64_t rows, int threads);
  void plan(runtime::Carver& carver);
  void multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to);

 private:
  void multiply_panels(runtime::Range panels, runtime::Range rows, const PreparedRows& x, int rank,
                       const Destination& to) const;

  Panels panels_;
  int64_t rows_;
  int threads_;
  Cut cut_;
  int64_t chunk_ = 1;      // panels that a task multiplies with its rows, run by run
  float* sums_ = nullptr;  // [threads][chunk_][cut_.rows][64]
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
