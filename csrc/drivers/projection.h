// The last product of a block with what follows it, for rows that go together.
//
//   alone                 product + residual -> out
//   of ranks              product (+ term) -> part of this rank;  sum of parts + residual -> out
//   with a norm between   product, or sum of parts -> floats;  norm -> + residual -> out       (sandwich norms)
#pragma once
#include <limits>

#include "comm/routes.h"
#include "drivers/linear.h"
#include "drivers/norm.h"

namespace torch_cpullm::drivers {

// What a block's product is added to, and where it goes: rows of [model] all.
struct Outlet {
  layout::Elements out;
  layout::ConstElements residual = {nullptr, layout::Element::f32};  // null data: none
  const comm::Routes* ranks = nullptr;  // that have a term of the product each; null: this one has all of it
  const float* term = nullptr;          // of ranks: what else this one brings into the sum; null: nothing

  Outlet from(int64_t index) const {
    return {out.from(index), residual.data ? residual.from(index) : residual, ranks, term ? term + index : nullptr};
  }
};

// Rows whose terms ranks may send at once.
inline int64_t most_sent_rows(const Outlet& outlet, int64_t model) {
  if (!outlet.ranks) return std::numeric_limits<int64_t>::max();
  return outlet.ranks->most_bytes() / (model * comm::bytes_of(comm::type_of(outlet.out.type)));
}

class Projection {
 public:
  // A norm between asks for a residual of out's type and no term.
  Projection(const layout::PackedView& weight, const Norm& norm, int64_t rows, int threads, const Outlet& outlet);
  void plan(runtime::Carver& carver);
  int64_t rows() const { return rows_; }
  const PreparedRows& input() const { return input_; }
  // Ahead of the last barrier before `run`.
  void begin(const runtime::Team& team);
  void run(const runtime::Team& team);

 private:
  void sum_ranks(const runtime::Team& team, layout::ConstElements residual, layout::Elements out);

  PreparedRows input_;
  Linear linear_;
  Norm norm_;
  Outlet outlet_;
  int64_t rows_, columns_;
  comm::Message message_;
  comm::Group* group_;
  std::byte* part_ = nullptr;
  float* buffer_ = nullptr;
};

}  // namespace torch_cpullm::drivers
