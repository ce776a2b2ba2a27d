// The two halves of a decoder layer as stages of a parallel region (the MLP one for each 2048 rows, gated.h):
//
//   attention: norm -> q,k,v -> head norms, rope, KV append -> attention -> output projection (-> norm) -> + residual
//   MLP:       norm -> gate,up -> act(gate) * up            -> down projection                 (-> norm) -> + residual
//
// Rows come and go in the model's own type, and are floats inside. Between two arrows there is a barrier, and one more
// where rows are prepared for a product; none between gate,up and down's rows where they are made tile by tile.
//
// Where ranks share a block, each has some of the heads or of gate's and up's columns, and so one term of what the
// projection gives. It writes that straight into the memory of the transport, and the sum over all ranks is taken where
// the residual is added (comm/group.h): one synchronisation for each half.
//
// In a layer whose halves read the same hidden, neither waits for the other, and their sum is one term:
//
//   hidden -> norm -> attention -> W_o x (+ residual) ----+
//         \-> norm -> MLP      -> W_d x (+ residual) -> floats -> one part, one sum of ranks -> out
#pragma once
#include <vector>

#include "drivers/attention.h"
#include "drivers/gated.h"
#include "drivers/projection.h"
#include "drivers/qkv_rows.h"
#include "drivers/stage.h"

namespace torch_cpullm::drivers {

struct AttentionBlock {
  std::vector<layout::PackedView> qkv;  // q, k, v, or one fused weight with that order of rows, or in groups
  layout::PackedView output;
  Norm input_norm, output_norm;
  QkvRows rows;
  AttentionProblem attention;           // all but q and out, which the block provides
  const comm::Routes* ranks = nullptr;  // that share it; null: this one has all of it
};

struct MlpBlock {
  GatedWeights gated;
  layout::PackedView down;
  Norm input_norm, output_norm;
  const comm::Routes* ranks = nullptr;  // as above
};

// The rows of a step, [batch * tokens][model]; out may not overlap hidden.
struct LayerRows {
  layout::ConstElements hidden;
  layout::Elements out;  // of the same type
  int64_t rows, model;
};

// The blocks have to outlive the stages.
void add_stages(Stages& stages, const AttentionBlock& block, const LayerRows& rows, int threads);
void add_stages(Stages& stages, const MlpBlock& block, const LayerRows& rows, int threads);
// Both of one hidden, without norms behind them: out = hidden + (what the one gives + what the other gives), rounded
// once, or by each rank once where ranks share one of them. `terms`: [rows][model], used while the stages run.
void add_parallel_stages(Stages& stages, const AttentionBlock& attention, const MlpBlock& mlp, const LayerRows& rows,
                         float* terms, int threads);

}  // namespace torch_cpullm::drivers
