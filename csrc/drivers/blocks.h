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
#pragma once
#include <vector>

#include "comm/routes.h"
#include "drivers/attention.h"
#include "drivers/gated.h"
#include "drivers/stage.h"

namespace torch_cpullm::drivers {

// x / rms(x) * (weight + offset); weight.data null: no norm at this place.
struct Norm {
  layout::ConstElements weight = {nullptr, layout::Element::f32};
  float eps = 0.0f;
  float offset = 0.0f;
};

struct AttentionBlock {
  std::vector<layout::PackedView> qkv;  // q, k, v, or one fused weight with that order of rows
  layout::PackedView output;
  Norm input_norm, query_norm, key_norm, output_norm;
  const float *cos, *sin;  // [batch or 1][tokens][rotary]
  int64_t rotary, rope_batch_stride;
  AttentionProblem attention;           // all but q and out, which the block provides
  const comm::Routes* ranks = nullptr;  // that share it; null: this one has all of it
};

// hidden[batch * tokens][model] -> out, same shape and type; may not overlap. The block has to outlive the stages.
void add_stages(Stages& stages, const AttentionBlock& block, layout::ConstElements hidden, int64_t model,
                layout::Elements out, int threads);

struct MlpBlock {
  GatedWeights gated;
  layout::PackedView down;
  Norm input_norm, output_norm;
  const comm::Routes* ranks = nullptr;  // as above
};

void add_stages(Stages& stages, const MlpBlock& block, layout::ConstElements hidden, int64_t rows, int64_t model,
                layout::Elements out, int threads);

}  // namespace torch_cpullm::drivers
