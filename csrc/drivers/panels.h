// What one member of a team does of a matrix product, sums[panel][row][64] being its own:
//
//   add      sums += rows x panels of a weight, over a run of blocks of K
//   finish   out = sums * column scale + bias (+ add)
//
// and how products are cut into such parts: blocks of rows x chunks of panels, and along K. What happens inside is the
// kernel's (kernels/linear/linear.h). With AMX rows that take more than half of L2 are cut along K as well: run 0 of a
// chunk of panels, run 1 of the same, then their sums are done.
#pragma once
#include <algorithm>
#include <cstdint>

#include "drivers/prepared_rows.h"
#include "kernels/linear/linear.h"

namespace torch_cpullm::drivers {

// Where a product goes: out[row * stride + n] = product (+ add[row * stride + n]).
struct Destination {
  layout::Elements out;
  int64_t stride;
  layout::ConstElements add = {nullptr, layout::Element::f32};  // null: nothing

  Destination from(int64_t row, int64_t column) const {
    const int64_t at = row * stride + column;
    return {out.from(at), stride, add.data ? add.from(at) : add};
  }
};

struct Cut {
  int64_t rows;    // that pass over a panel together
  int64_t run;     // blocks of K at a time
  bool rows_stay;  // such a run of such rows takes at most half of L2
};
Cut cut_of(const layout::PackedView& weight, int64_t rows);

// The tasks of a product. Where a block of rows stays in L2 all chunks pass over it, else a chunk stays while all rows
// pass.
struct Grid {
  Cut cut;
  int64_t rows, chunks;

  int64_t row_blocks() const { return layout::ceil_div(rows, cut.rows); }
  int64_t tasks() const { return chunks * row_blocks(); }
  int64_t chunk(int64_t task) const { return cut.rows_stay ? task % chunks : task / row_blocks(); }
  runtime::Range rows_of(int64_t task) const {
    const int64_t first = (cut.rows_stay ? task / chunks : task % row_blocks()) * cut.rows;
    return {first, std::min(first + cut.rows, rows)};
  }
};

// [panels][rows][64], panel 0 being the first of what is multiplied.
struct PanelSums {
  float* values;
  int64_t rows;

  float* at(int64_t panel, int64_t row) const { return values + (panel * rows + row) * layout::kPanelColumns; }
};

class Panels {
 public:
  explicit Panels(const layout::PackedView& weight);
  int64_t columns() const { return weight_.columns; }
  int64_t count() const { return layout::panel_count(weight_.columns); }
  int64_t blocks() const { return layout::block_count(weight_.format, weight_.padded); }
  // sums.rows rows from `first_row` on. Block 0 sets the sums, the others add to them.
  void add(runtime::Range panels, runtime::Range blocks, const PreparedRows& x, int64_t first_row,
           const PanelSums& sums) const;
  // Rows `rows` of the sums, of panels from that of columns.begin on; `to` is where the first row and column go.
  void finish(runtime::Range columns, runtime::Range rows, const PanelSums& sums, const Destination& to) const;

 private:
  void multiply_expanded(kernels::LinearPanel tile) const;

  layout::PackedView weight_;
  bool expands_;  // a quantised weight with bf16 activations
  kernels::LinearFn kernel_;
  kernels::ExpandFn expand_;
  kernels::FinishFn finish_;
};

}  // namespace torch_cpullm::drivers
