#include "drivers/gated.h"

#include <algorithm>

namespace torch_cpullm::drivers {

using layout::floats;
using layout::kPanelColumns;
using runtime::Range;

namespace {

constexpr int64_t kTaskColumns = layout::kActivationGroup;
constexpr int64_t kTaskPanels = kTaskColumns / kPanelColumns + 1;
constexpr int64_t kFinishedRows = 16;  // of gate and of up: 32 KiB
constexpr int64_t kTilesFrom = 17;     // rows; up to 16 weights come in streams (kernels/linear/README.md)
// A thread may have to wait for one task of another: with 8 each an eighth at most, half of what tiles save.
constexpr int64_t kTasksPerThread = 8;

Grid grid_of(const GatedWeights& weights, int64_t rows) {
  return {cut_of(weights.gate_up.front(), rows), rows, layout::ceil_div(weights.columns, kTaskColumns)};
}

Range panels_of(Range columns) { return {columns.begin / kPanelColumns, layout::panel_count(columns.end)}; }

}  // namespace

GatedTiles::Half::Half(const layout::PackedView& weight, int64_t rows, int64_t first_column)
    : panels(weight), run(cut_of(weight, rows).run), first(first_column) {}

GatedTiles::GatedTiles(const GatedWeights& weights, int64_t rows, int threads)
    : weights_(weights),
      threads_(threads),
      gate_(weights.gate_up.front(), rows, 0),
      up_(weights.gate_up.back(), rows, weights.gate_up.size() == 1 && weights.has_up() ? weights.columns : 0),
      grid_(grid_of(weights, rows)) {}

bool GatedTiles::suit(const GatedWeights& weights, int64_t rows, int threads) {
  return rows >= kTilesFrom && grid_of(weights, std::min(rows, kMostRows)).tasks() >= kTasksPerThread * threads;
}

void GatedTiles::plan(runtime::Carver& carver) {
  sums_ = carver.take<float>(threads_ * 2 * kTaskPanels * grid_.cut.rows * kPanelColumns);
  finished_ = carver.take<float>(threads_ * 2 * kFinishedRows * kTaskColumns);
}

void GatedTiles::Half::multiply(int64_t nth, const Task& task, const PreparedRows& x, const PanelSums& sums) const {
  const Range blocks{nth * run, std::min((nth + 1) * run, panels.blocks())};
  if (blocks.begin < blocks.end) panels.add(panels_of(columns(task)), blocks, x, task.rows.begin, sums);
}

void GatedTiles::hand_over(const Task& task, float* finished, const PreparedRows& out) const {
  const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
  const int64_t count = task.rows.end - task.rows.begin, width = task.columns.end - task.columns.begin;
  float *gate = finished, *up = finished + kFinishedRows * kTaskColumns;
  for (int64_t row = 0; row < count; row += kFinishedRows) {
    const Range rows{row, std::min(row + kFinishedRows, count)};
    gate_.panels.finish(gate_.columns(task), rows, task.gate, {floats(gate), width});
    if (weights_.has_up()) up_.panels.finish(up_.columns(task), rows, task.up, {floats(up), width});
    kernels.gated(gate, weights_.has_up() ? up : nullptr, weights_.gate, (rows.end - rows.begin) * width, gate);
    for (int64_t r = rows.begin; r < rows.end; ++r)
      out.prepare(task.rows.begin + r, task.columns, floats(gate + (r - row) * width));
  }
}

void GatedTiles::run(const runtime::Team& team, const PreparedRows& x, const PreparedRows& out) {
  const int64_t each = kTaskPanels * grid_.cut.rows * kPanelColumns;
  float* sums = sums_ + team.rank * 2 * each;
  for (int64_t index = counter_.take(); index < grid_.tasks(); index = counter_.take()) {
    const Range rows = grid_.rows_of(index);
    const int64_t first = grid_.chunk(index) * kTaskColumns, count = rows.end - rows.begin;
    const Task task{
        rows, {first, std::min(first + kTaskColumns, weights_.columns)}, {sums, count}, {sums + each, count}};
    // In turns: a run of K stays in L2 for both.
    for (int64_t run = 0; run < std::max(gate_.runs(), up_.runs()); ++run) {
      gate_.multiply(run, task, x, task.gate);
      if (weights_.has_up()) up_.multiply(run, task, x, task.up);
    }
    hand_over(task, finished_ + team.rank * 2 * kFinishedRows * kTaskColumns, out);
  }
}

GatedStreams::GatedStreams(const GatedWeights& weights, int64_t rows, int threads)
    : weights_(weights), gate_up_(weights.gate_up, rows, threads), rows_(rows) {}

void GatedStreams::plan(runtime::Carver& carver) {
  gate_up_.plan(carver);
  gates_ = carver.take<float>(rows_ * gate_up_.columns());
}

void GatedStreams::run(const runtime::Team& team, const PreparedRows& x, const PreparedRows& out) {
  const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
  const int64_t stride = gate_up_.columns();
  gate_up_.multiply(team, x, {floats(gates_), stride});
  team.barrier();
  const bool shared = rows_ < team.size;
  const Range mine = shared ? Range{0, rows_} : team.share(rows_);
  const Range columns = shared ? out.share(team) : Range{0, weights_.columns};
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    float* gate = gates_ + row * stride + columns.begin;
    kernels.gated(gate, weights_.has_up() ? gate + weights_.columns : nullptr, weights_.gate,
                  columns.end - columns.begin, gate);
    out.prepare(row, columns, floats(gate));
  }
}

}  // namespace torch_cpullm::drivers
