// The inner values of an MLP, act(x * gate) * (x * up), as prepared rows of the product that follows; act(x * gate)
// where there is no up. Two ways to the same bits.
//
// GatedTiles, where rows are many. A task takes 256 columns of gate and of up, which are whole blocks of prepared rows
// in every format, and a block of rows of x:
//
//   panels g .. g+3 of gate         panels u .. u+3 of up          sums [4][rows][64] each, in L2
//          | finish                        | finish
//   [16 rows][256 columns]          [16 rows][256 columns]         floats, in L1
//          | act(gate) * up, prepare
//   256 columns of prepared rows                                   1 (int8) to 4 bytes a value, to memory
//
// GatedStreams, where they are few, or members so many that tasks are not: each member reads its panels in one stream,
// gate and up go to memory as floats. With 512 rows those are 32 MiB at 8192 columns, written in strips of 256 bytes at
// strides of 64 KiB, a fifth of an INT8 prefill with AMX: 512 rows of 2048 -> 8192 -> 2048 took 19.2 ms so on two
// threads of a Xeon with AMX, and take 15.4 with tiles (bf16 28.2 and 24.0; AVX-512 2 to 9 %, AVX2 2 to 4 %).
#pragma once
#include <vector>

#include "drivers/linear.h"

namespace torch_cpullm::drivers {

struct GatedWeights {
  std::vector<layout::PackedView> gate_up;  // gate and up, one fused weight with that order of rows, or gate alone
  kernels::Gate gate;
  int64_t columns;  // of gate, and of up

  bool has_up() const { return gate_up.size() == 2 || gate_up.front().columns == 2 * columns; }
};

class GatedTiles {
 public:
  // At a time: their prepared rows take 32 MiB at 8192 columns of bf16.
  static constexpr int64_t kMostRows = 2048;
  static bool suit(const GatedWeights& weights, int64_t rows, int threads);

  GatedTiles(const GatedWeights& weights, int64_t rows, int threads);
  void plan(runtime::Carver& carver);
  void run(const runtime::Team& team, const PreparedRows& x, const PreparedRows& out);

 private:
  struct Task {
    runtime::Range rows, columns;
    PanelSums gate, up;
  };
  // Gate or up: columns of a weight from `first` on. Where `first` is inside a panel, 256 columns lie in five.
  struct Half {
    Panels panels;
    int64_t run, first;

    Half(const layout::PackedView& weight, int64_t rows, int64_t first_column);
    int64_t runs() const { return layout::ceil_div(panels.blocks(), run); }
    runtime::Range columns(const Task& task) const { return {task.columns.begin + first, task.columns.end + first}; }
    void multiply(int64_t nth, const Task& task, const PreparedRows& x, const PanelSums& sums) const;
  };
  void hand_over(const Task& task, float* finished, const PreparedRows& out) const;

  const GatedWeights& weights_;
  int threads_;
  Half gate_, up_;
  Grid grid_;
  float* sums_ = nullptr;      // [threads][2][5][grid_.cut.rows][64]
  float* finished_ = nullptr;  // [threads][2][16][256]
  runtime::TaskCounter counter_;
};

class GatedStreams {
 public:
  static constexpr int64_t kMostRows = 512;

  GatedStreams(const GatedWeights& weights, int64_t rows, int threads);
  void plan(runtime::Carver& carver);
  void run(const runtime::Team& team, const PreparedRows& x, const PreparedRows& out);

 private:
  const GatedWeights& weights_;
  LinearGroup gate_up_;
  int64_t rows_;
  float* gates_ = nullptr;  // [rows][gate columns, up columns]
};

}  // namespace torch_cpullm::drivers
