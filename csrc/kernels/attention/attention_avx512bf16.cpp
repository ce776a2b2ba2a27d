#include "kernels/attention/attention.h"

#define TORCH_CPULLM_AVX512BF16
#include "isa/avx512.h"
#include "kernels/attention/product_body.h"

namespace torch_cpullm::kernels::avx512bf16 {

const AttentionProducts attention_bf16{scores<Bf16Product>, values<Bf16Product>};

}  // namespace torch_cpullm::kernels::avx512bf16

#include "isa/region_end.h"
