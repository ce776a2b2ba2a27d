#include "kernels/attention/attention.h"

#include "isa/avx2.h"
#include "kernels/attention/attention_body.h"

namespace torch_cpullm::kernels::avx2 {

const AttentionKernels attention{{scores<float>, scores<uint16_t>, scores<int8_t>},
                                 {values<float>, values<uint16_t>, values<int8_t>},
                                 kScoreTileRows,
                                 kValueTileRows,
                                 soft_cap,
                                 softmax,
                                 fold_value_scale};

}  // namespace torch_cpullm::kernels::avx2

#include "isa/region_end.h"
