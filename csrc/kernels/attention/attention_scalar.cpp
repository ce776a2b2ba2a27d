#include "kernels/attention/attention.h"

#include "isa/scalar.h"
#include "kernels/attention/attention_body.h"

namespace torch_cpullm::kernels::scalar {

const AttentionKernels attention{{scores<float>, scores<uint16_t>, scores<int8_t>},
                                 {values<float>, values<uint16_t>, values<int8_t>},
                                 kScoreTileRows,
                                 kValueTileRows,
                                 soft_cap,
                                 softmax,
                                 fold_value_scale};

}  // namespace torch_cpullm::kernels::scalar
