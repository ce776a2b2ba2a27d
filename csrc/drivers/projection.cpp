#include "drivers/projection.h"

namespace torch_cpullm::drivers {

using layout::floats;
using runtime::Range;
using runtime::Team;

Projection::Projection(const layout::PackedView& weight, const Norm& norm, int64_t rows, int threads,
                       const Outlet& outlet)
    : input_(weight, rows),
      linear_(weight, rows, threads),
      norm_(norm),
      outlet_(outlet),
      rows_(rows),
      columns_(weight.columns),
      message_{comm::Operation::all_reduce, comm::type_of(outlet.out.type), rows * weight.columns},
      group_(outlet.ranks ? &outlet.ranks->of(message_.bytes()) : nullptr) {}

void Projection::plan(runtime::Carver& carver) {
  input_.plan(carver);
  linear_.plan(carver);
  if (norm_) buffer_ = carver.take<float>(rows_ * columns_);
}

void Projection::begin(const Team& team) {
  if (group_ && team.rank == 0) part_ = group_->begin(message_.bytes());
}

void Projection::run(const Team& team) {
  const layout::ConstElements residual = norm_ ? layout::ConstElements{nullptr, outlet_.out.type} : outlet_.residual;
  const layout::Elements sum = norm_ ? floats(buffer_) : outlet_.out;
  if (group_)
    sum_ranks(team, residual, sum);
  else
    linear_.multiply(team, input_, {sum, columns_, residual});
  if (!norm_) return;
  team.barrier();
  const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
  const Range mine = team.share(rows_);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    float* normed = buffer_ + row * columns_;
    norm_.run(kernels, floats(normed), columns_, normed);
    kernels.add(normed, outlet_.residual.from(row * columns_), columns_, outlet_.out.from(row * columns_));
  }
}

void Projection::sum_ranks(const Team& team, layout::ConstElements residual, layout::Elements out) {
  const layout::ConstElements term{outlet_.term, layout::Element::f32};
  if (part_) linear_.multiply(team, input_, {{part_, outlet_.out.type}, columns_, term});
  comm::add_parts(team, message_, group_->run(team, message_), residual, out);
}

}  // namespace torch_cpullm::drivers
