#include "drivers/linear.h"

#include <algorithm>
#include <cstring>

namespace torch_cpullm::drivers {

using layout::ceil_div;
using layout::kPanelColumns;
using layout::kStepBytes;
using layout::round_up;

PreparedRows::PreparedRows(layout::Format format, int64_t rows, int64_t depth)
    : format_(format),
      depth_(depth),
      rows_(rows),
      stride_(round_up(depth, 64) * layout::element_bytes(format)),
      groups_(layout::activation_groups(depth)),
      kernels_(kernels::rowwise_kernels()) {}

void PreparedRows::plan(runtime::Carver& carver) {
  values_ = carver.take<uint8_t>(rows_ * stride_);
  if (format_ != layout::Format::int8) return;
  scale_ = carver.take<float>(rows_ * groups_);
  sum_ = carver.take<int32_t>(rows_ * groups_);
}

void PreparedRows::prepare(int64_t row, const float* x) const {
  uint8_t* out = values_ + row * stride_;
  switch (format_) {
    case layout::Format::f32:
      std::memcpy(out, x, static_cast<size_t>(depth_) * sizeof(float));
      break;
    case layout::Format::bf16:
      kernels_.to_bf16(x, depth_, reinterpret_cast<uint16_t*>(out));
      break;
    case layout::Format::int8:
      kernels_.quantize_s8(x, depth_, reinterpret_cast<int8_t*>(out), scale_ + row * groups_, sum_ + row * groups_);
      break;
  }
}

Linear::Linear(const layout::PackedView& weight, int64_t rows, int threads)
    : weight_(weight), kernel_(kernels::linear_kernel(weight.format)), rows_(rows), threads_(threads) {}

void Linear::plan(runtime::Carver& carver) {
  sums_ = carver.take<float>(threads_ * std::min(rows_, kBlockRows) * kPanelColumns);
}

void Linear::multiply_panel(int64_t panel, int64_t first_row, int64_t rows, const PreparedRows& x, float* sums,
                            const Destination& to) const {
  const uint8_t* steps = weight_.panels + panel * weight_.steps * kStepBytes;
  std::memset(sums, 0, static_cast<size_t>(rows * kPanelColumns) * sizeof(float));
  // One row passes over the panel once, whatever the cut; with several, the run of steps stays in cache for all tiles.
  const int64_t run = rows <= kernel_.tile_rows ? weight_.steps : kBlockSteps;
  for (int64_t step = 0; step < weight_.steps; step += run) {
    const int64_t group = step / kernels::kStepsPerGroup;
    for (int64_t r = 0; r < rows; r += kernel_.tile_rows) {
      const int64_t row = first_row + r;
      kernel_.fn({x.values_ + row * x.stride_ + step * 4, x.stride_,
                  x.scale_ ? x.scale_ + row * x.groups_ + group : nullptr,
                  x.sum_ ? x.sum_ + row * x.groups_ + group : nullptr, x.groups_, steps + step * kStepBytes,
                  std::min(run, weight_.steps - step), sums + r * kPanelColumns, kPanelColumns,
                  static_cast<int>(std::min<int64_t>(kernel_.tile_rows, rows - r))});
    }
  }
  const int64_t first = panel * kPanelColumns, width = std::min(kPanelColumns, weight_.columns - first);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (first_row + r) * to.stride + first;
    for (int64_t n = 0; n < width; ++n) {
      float value = sums[r * kPanelColumns + n];
      if (weight_.scale) value *= weight_.scale[first + n];
      if (weight_.bias) value += weight_.bias[first + n];
      if (to.add) value += to.add[at + n];
      to.out[at + n] = value;
    }
  }
}

void Linear::multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to) {
  float* sums = sums_ + team.rank * std::min(rows_, kBlockRows) * kPanelColumns;
  const int64_t panels = layout::panel_count(weight_.columns);
  if (rows_ <= kBlockRows) {
    // Each member reads its panels as one contiguous stream: decode lives from that.
    const runtime::Range mine = team.share(panels);
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) multiply_panel(panel, 0, rows_, x, sums, to);
    return;
  }
  const int64_t blocks = ceil_div(rows_, kBlockRows);
  for (int64_t task = counter_.take(); task < panels * blocks; task = counter_.take()) {
    const int64_t first_row = task % blocks * kBlockRows;
    multiply_panel(task / blocks, first_row, std::min(kBlockRows, rows_ - first_row), x, sums, to);
  }
}

LinearGroup::LinearGroup(const std::vector<layout::PackedView>& weights, int64_t rows, int threads)
    : members_(), offsets_() {
  for (const layout::PackedView& weight : weights) {
    members_.emplace_back(weight, rows, threads);
    offsets_.push_back(columns_);
    columns_ += weight.columns;
  }
}

void LinearGroup::plan(runtime::Carver& carver) {
  for (Linear& member : members_) member.plan(carver);
}

void LinearGroup::multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to) {
  for (size_t i = 0; i < members_.size(); ++i) {
    const int64_t offset = offsets_[i];
    members_[i].multiply(team, x, {to.out + offset, to.stride, to.add ? to.add + offset : nullptr});
  }
}

void run_linear(const layout::PackedView& weight, const float* x, int64_t rows, float* y, int threads) {
  PreparedRows prepared(weight.format, rows, weight.depth);
  Linear linear(weight, rows, threads);
  runtime::with_scratch(
      [&](runtime::Carver& carver) {
        prepared.plan(carver);
        linear.plan(carver);
      },
      [&] {
        runtime::parallel(threads, [&](const runtime::Team& team) {
          const runtime::Range mine = team.share(rows);
          for (int64_t row = mine.begin; row < mine.end; ++row) prepared.prepare(row, x + row * weight.depth);
          team.barrier();
          linear.multiply(team, prepared, {y, weight.columns});
        });
      });
}

}  // namespace torch_cpullm::drivers
