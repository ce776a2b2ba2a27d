// The norm at one place of a decoder layer, and rows that go through it into a product.
#pragma once
#include "drivers/prepared_rows.h"

namespace torch_cpullm::drivers {

//   x / rms(x) * (weight + offset), or where it is centred
//   (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias
struct Norm {
  layout::ConstElements weight = {nullptr, layout::Element::f32};  // null data: no norm at this place
  layout::ConstElements bias = {nullptr, layout::Element::f32};    // of weight's type; null data: none
  float eps = 0.0f;
  float offset = 0.0f;
  bool centred = false;

  explicit operator bool() const { return weight.data != nullptr; }
  // A row of n into `out`, which may be x.
  void run(const kernels::RowwiseKernels& kernels, layout::ConstElements x, int64_t n, float* out) const {
    if (centred)
      kernels.layer_norm(x, weight, bias, eps, n, out);
    else
      kernels.rms_norm(x, weight, offset, eps, n, out);
  }
};

// This member's share of the rows, normed into its row of `normed` ([threads][model]) and then prepared. With fewer
// rows than members each norms the row for itself and prepares its part of it: the norm of one row is cheaper than
// another barrier.
inline void prepare_normed(const runtime::Team& team, const Norm& norm, layout::ConstElements hidden, int64_t model,
                           float* normed, int64_t rows, const PreparedRows& input) {
  const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
  float* own = normed + team.rank * model;
  const bool shared = rows < team.size;
  const runtime::Range mine = shared ? runtime::Range{0, rows} : team.share(rows);
  const runtime::Range columns = shared ? input.share(team) : runtime::Range{0, model};
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    layout::ConstElements x = hidden.from(row * model);
    if (norm) {
      norm.run(kernels, x, model, own);
      x = layout::floats(own);
    }
    input.prepare(row, columns, x.from(columns.begin));
  }
}

}  // namespace torch_cpullm::drivers
