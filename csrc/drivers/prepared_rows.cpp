#include "drivers/prepared_rows.h"

#include <algorithm>

#include "kernels/linear/linear.h"

namespace torch_cpullm::drivers {

using layout::Activation;
using layout::kActBytes;

namespace {

int64_t act_depth(Activation activation) {
  return activation == Activation::f32 ? 64 : activation == Activation::bf16 ? 128 : 256;
}

}  // namespace

PreparedRows::PreparedRows(const layout::PackedView& weight, int64_t rows)
    : multiplier_(weight.multiplier),
      activation_(weight.format.activation),
      depth_(weight.depth),
      rows_(rows),
      blocks_(layout::ceil_div(weight.padded, act_depth(activation_))),
      sums_(weight.format.group ? layout::kActivationGroup / weight.format.group : 1) {
  const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
  fn_ = activation_ == Activation::f32    ? kernels.act_f32
        : activation_ == Activation::bf16 ? kernels.act_bf16
                                          : kernels.act_s8;
}

void PreparedRows::plan(runtime::Carver& carver) {
  values_ = carver.take<uint8_t>((blocks_ * rows_ + kernels::kRowsBehind) * kActBytes);
  // Also where they are not used: a pointer that may be moved costs less than one that may be null.
  scale_ = carver.take<float>(blocks_ * rows_);
  sum_ = carver.take<int32_t>(blocks_ * rows_ * sums_);
}

void PreparedRows::prepare(int64_t row, runtime::Range columns, layout::ConstElements x) const {
  const int64_t width = columns.end - columns.begin, at = columns.begin / act_depth(activation_) * rows_ + row;
  if (width <= 0) return;
  fn_(x, multiplier_ ? multiplier_ + columns.begin : nullptr, width,
      {values_ + at * kActBytes, rows_, scale_ + at, sum_ + at * sums_, sums_});
}

runtime::Range PreparedRows::share(const runtime::Team& team) const {
  const runtime::Range blocks = team.share(blocks_);
  const int64_t each = act_depth(activation_);
  return {std::min(depth_, blocks.begin * each), std::min(depth_, blocks.end * each)};
}

void PreparedRows::prepare_all(const runtime::Team& team, layout::ConstElements x) const {
  if (rows_ >= team.size) {
    const runtime::Range mine = team.share(rows_);
    for (int64_t row = mine.begin; row < mine.end; ++row) prepare(row, {0, depth_}, x.from(row * depth_));
    return;
  }
  const runtime::Range columns = share(team);
  for (int64_t row = 0; row < rows_; ++row) prepare(row, columns, x.from(row * depth_ + columns.begin));
}

}  // namespace torch_cpullm::drivers
