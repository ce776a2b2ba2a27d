#include "kernels/rowwise/rowwise.h"

#include "isa/avx512.h"
#include "kernels/rowwise/rowwise_body.h"

namespace torch_cpullm::kernels::avx512 {

const RowwiseKernels rowwise{rms_norm, layer_norm, add_rows,   sum_parts, act_f32,  act_bf16,
                             act_s8,   rope,       rope_pairs, gated,     kv_store, kv_fetch};

}  // namespace torch_cpullm::kernels::avx512

#include "isa/region_end.h"
