#include "kernels/attention/attention.h"

#define TORCH_CPULLM_AVXVNNI
#include "isa/avx2.h"
#include "kernels/attention/product_body.h"
#include "kernels/attention/product_int8.h"

namespace torch_cpullm::kernels::avxvnni {

const AttentionProducts attention_int8{scores<Int8Product>, values<Int8Product>};

}  // namespace torch_cpullm::kernels::avxvnni

#include "isa/region_end.h"
