#include "drivers/linear.h"

#include <algorithm>
#include <cstring>

namespace torch_cpullm::drivers {

using layout::Activation;
using layout::kActBytes;
using layout::kPanelColumns;

namespace {

constexpr layout::WeightFormat kBf16{layout::Codes::bf16, Activation::bf16, false, 0};
constexpr int64_t kExpandedBytes = 2 * layout::kStrips * layout::strip_bytes(kBf16, layout::block_depth(kBf16.codes));

constexpr int64_t kMostPanels = 8;  // sums of 256 rows: 512 KiB

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

void PreparedRows::prepare(int64_t row, layout::ConstElements x, runtime::Range share) const {
  const int64_t each = act_depth(activation_), first = share.begin * each, at = share.begin * rows_ + row;
  const int64_t width = std::min(depth_, share.end * each) - first;
  if (width <= 0) return;
  fn_(x.from(first), multiplier_ ? multiplier_ + first : nullptr, width,
      {values_ + at * kActBytes, rows_, scale_ + at, sum_ + at * sums_, sums_});
}

void PreparedRows::prepare_all(const runtime::Team& team, layout::ConstElements x) const {
  if (rows_ >= team.size) {
    const runtime::Range mine = team.share(rows_);
    for (int64_t row = mine.begin; row < mine.end; ++row) prepare(row, x.from(row * depth_), {0, blocks_});
    return;
  }
  for (int64_t row = 0; row < rows_; ++row) prepare(row, x.from(row * depth_), team.share(blocks_));
}

Linear::Linear(const layout::PackedView& weight, int64_t rows, int threads)
    : weight_(weight),
      expands_(is_quantized(weight.format.codes) && weight.format.activation == Activation::bf16),
      kernel_(kernels::linear_kernel(expands_ ? kBf16 : weight.format)),
      expand_(expands_ ? kernels::expand_kernel() : nullptr),
      finish_(kernels::finish_kernel()),
      rows_(rows),
      threads_(threads),
      run_(layout::block_count(weight.format, weight.padded)) {
  const kernels::LinearBlocking blocking = kernels::linear_blocking(expands_ ? kBf16 : weight.format);
  block_rows_ = std::min(rows, blocking.rows);
  const int64_t fit = std::max<int64_t>(dispatch::l2_bytes() / 2 / (block_rows_ * kActBytes), 1);
  if (!blocking.cut_depth || expands_ || run_ <= fit) return;
  run_ = layout::ceil_div(run_, layout::ceil_div(run_, fit));
  const int64_t tasks = layout::panel_count(weight.columns) * layout::ceil_div(rows, block_rows_);
  chunk_ = std::clamp<int64_t>(tasks / (4 * threads), 1, kMostPanels);
}

void Linear::plan(runtime::Carver& carver) {
  sums_ = carver.take<float>(threads_ * chunk_ * block_rows_ * kPanelColumns);
  if (expands_) bf16_ = carver.take<uint8_t>(threads_ * kExpandedBytes);
}

// Block by block: 16 KiB of bf16 for each 128 k, multiplied while they are in L1.
void Linear::multiply_expanded(kernels::LinearPanel tile, uint8_t* bf16) const {
  const uint8_t *act = tile.act, *panel = tile.weight;
  tile.weight = bf16;
  tile.format = kBf16;
  for (int64_t b = 0; b < layout::block_count(weight_.format, weight_.padded); ++b) {
    const layout::BlockPlace place = layout::block_place(weight_.format, weight_.padded, b);
    expand_(panel + place.offset, weight_.format, place.depth, bf16);
    tile.act = act + 2 * b * tile.act_rows * kActBytes;
    tile.padded = place.depth;
    kernel_(tile);
  }
}

void Linear::multiply_panels(runtime::Range panels, int64_t first_row, int64_t rows, const PreparedRows& x, int rank,
                             const Destination& to) const {
  const int64_t each = rows * kPanelColumns, blocks = layout::block_count(weight_.format, weight_.padded);
  float* sums = sums_ + rank * chunk_ * block_rows_ * kPanelColumns;
  std::memset(sums, 0, static_cast<size_t>((panels.end - panels.begin) * each) * sizeof(float));
  for (int64_t block = 0; block < blocks; block += run_) {
    const layout::BlockPlace place = layout::block_place(weight_.format, weight_.padded, block);
    const int64_t depth = std::min(weight_.padded - place.first, run_ * layout::block_depth(weight_.format.codes));
    const int64_t at = block * x.rows_ + first_row;
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const kernels::LinearPanel tile{x.values_ + at * kActBytes,
                                      x.scale_ + at,
                                      x.sum_ + at * x.sums_,
                                      x.rows_,
                                      weight_.panel(panel) + place.offset,
                                      weight_.format,
                                      depth,
                                      sums + (panel - panels.begin) * each,
                                      rows};
      if (expands_) {
        multiply_expanded(tile, bf16_ + rank * kExpandedBytes);
      } else {
        kernel_(tile);
      }
    }
  }
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const int64_t first = panel * kPanelColumns, at = first_row * to.stride + first;
    finish_({sums + (panel - panels.begin) * each, weight_.column_scale ? weight_.column_scale + first : nullptr,
             weight_.bias ? weight_.bias + first : nullptr, to.add ? to.add + at : nullptr, to.out.from(at), to.stride,
             rows, std::min(kPanelColumns, weight_.columns - first)});
  }
}

void Linear::multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to) {
  const int64_t panels = layout::panel_count(weight_.columns);
  if (rows_ <= block_rows_ && chunk_ == 1) {
    // Each member reads its panels as one contiguous stream: decode lives from that. The last eighth is handed out one
    // by one, since cores are never equally fast: with fixed halves one of two waited 5 to 10 % of the time.
    const auto one = [&](int64_t panel) { multiply_panels({panel, panel + 1}, 0, rows_, x, team.rank, to); };
    const int64_t fixed = panels - panels / 8;
    const runtime::Range mine = team.share(fixed);
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) one(panel);
    for (int64_t panel = fixed + counter_.take(); panel < panels; panel = fixed + counter_.take()) one(panel);
    return;
  }
  const int64_t blocks = layout::ceil_div(rows_, block_rows_), chunks = layout::ceil_div(panels, chunk_);
  const bool rows_stay = 2 * block_rows_ * run_ * kActBytes <= dispatch::l2_bytes();
  for (int64_t task = counter_.take(); task < chunks * blocks; task = counter_.take()) {
    const int64_t first_panel = (rows_stay ? task % chunks : task / blocks) * chunk_;
    const int64_t first_row = (rows_stay ? task / chunks : task % blocks) * block_rows_;
    multiply_panels({first_panel, std::min(first_panel + chunk_, panels)}, first_row,
                    std::min(block_rows_, rows_ - first_row), x, team.rank, to);
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
    members_[i].multiply(team, x, {to.out.from(offset), to.stride, to.add ? to.add + offset : nullptr});
  }
}

void run_linear(const layout::PackedView& weight, layout::ConstElements x, int64_t rows, layout::Elements y,
                int threads) {
  PreparedRows prepared(weight, rows);
  Linear linear(weight, rows, threads);
  runtime::with_scratch(
      [&](runtime::Carver& carver) {
        prepared.plan(carver);
        linear.plan(carver);
      },
      [&] {
        runtime::parallel(threads, [&](const runtime::Team& team) {
          prepared.prepare_all(team, x);
          team.barrier();
          linear.multiply(team, prepared, {y, weight.columns});
        });
      });
}

}  // namespace torch_cpullm::drivers
