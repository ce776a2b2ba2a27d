#include "drivers/panels.h"

#include <cstring>

namespace torch_cpullm::drivers {

using layout::Activation;
using layout::kActBytes;
using layout::kPanelColumns;
using runtime::Range;

namespace {

constexpr layout::WeightFormat kBf16{layout::Codes::bf16, Activation::bf16, false, 0};
constexpr int64_t kExpandedBytes = 2 * layout::kStrips * layout::strip_bytes(kBf16, layout::block_depth(kBf16.codes));

bool expands(const layout::PackedView& weight) {
  return is_quantized(weight.format.codes) && weight.format.activation == Activation::bf16;
}

}  // namespace

Cut cut_of(const layout::PackedView& weight, int64_t rows) {
  const kernels::LinearBlocking blocking = kernels::linear_blocking(expands(weight) ? kBf16 : weight.format);
  const int64_t at_once = std::min(rows, blocking.rows), blocks = layout::block_count(weight.format, weight.padded);
  const int64_t fit = std::max<int64_t>(dispatch::l2_bytes() / 2 / (at_once * kActBytes), 1);
  const bool cuts = blocking.cut_depth && !expands(weight) && blocks > fit;
  const int64_t run = cuts ? layout::ceil_div(blocks, layout::ceil_div(blocks, fit)) : blocks;
  return {at_once, run, run <= fit};
}

Panels::Panels(const layout::PackedView& weight)
    : weight_(weight),
      expands_(expands(weight)),
      kernel_(kernels::linear_kernel(expands_ ? kBf16 : weight.format)),
      expand_(expands_ ? kernels::expand_kernel() : nullptr),
      finish_(kernels::finish_kernel()) {}

// Block by block: 16 KiB of bf16 for each 128 k, multiplied while they are in L1.
void Panels::multiply_expanded(kernels::LinearPanel tile) const {
  alignas(layout::kAlignment) uint8_t bf16[kExpandedBytes];
  const uint8_t *act = tile.act, *panel = tile.weight;
  tile.weight = bf16;
  tile.format = kBf16;
  for (int64_t b = 0; b < blocks(); ++b) {
    const layout::BlockPlace place = layout::block_place(weight_.format, weight_.padded, b);
    expand_(panel + place.offset, weight_.format, place.depth, bf16);
    tile.act = act + 2 * b * tile.act_rows * kActBytes;
    tile.padded = place.depth;
    kernel_(tile);
  }
}

void Panels::add(Range panels, Range blocks, const PreparedRows& x, int64_t first_row, const PanelSums& sums) const {
  const layout::BlockPlace place = layout::block_place(weight_.format, weight_.padded, blocks.begin);
  const int64_t run = (blocks.end - blocks.begin) * layout::block_depth(weight_.format.codes);
  const int64_t at = blocks.begin * x.rows_ + first_row;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    float* c = sums.at(panel - panels.begin, 0);
    if (blocks.begin == 0) std::memset(c, 0, static_cast<size_t>(sums.rows * kPanelColumns) * sizeof(float));
    const kernels::LinearPanel tile{x.values_ + at * kActBytes,
                                    x.scale_ + at,
                                    x.sum_ + at * x.sums_,
                                    x.rows_,
                                    weight_.panel(panel) + place.offset,
                                    weight_.format,
                                    std::min(weight_.padded - place.first, run),
                                    c,
                                    sums.rows};
    if (expands_) {
      multiply_expanded(tile);
    } else {
      kernel_(tile);
    }
  }
}

void Panels::finish(Range columns, Range rows, const PanelSums& sums, const Destination& to) const {
  const int64_t first_panel = columns.begin / kPanelColumns;
  for (int64_t begin = columns.begin; begin < columns.end;) {
    const int64_t panel = begin / kPanelColumns, end = std::min((panel + 1) * kPanelColumns, columns.end);
    const Destination part = to.from(0, begin - columns.begin);
    finish_({sums.at(panel - first_panel, rows.begin) + begin % kPanelColumns,
             weight_.column_scale ? weight_.column_scale + begin : nullptr,
             weight_.bias ? weight_.bias + begin : nullptr, part.add, part.out, part.stride, rows.end - rows.begin,
             end - begin});
    begin = end;
  }
}

}  // namespace torch_cpullm::drivers
