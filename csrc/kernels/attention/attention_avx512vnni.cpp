#include "kernels/attention/attention.h"

#define TORCH_CPULLM_AVX512VNNI
#include "isa/avx512.h"
#include "kernels/attention/product_body.h"
#include "kernels/attention/product_int8.h"

namespace torch_cpullm::kernels::avx512vnni {

const AttentionProducts attention_int8{scores<Int8Product>, values<Int8Product>};

}  // namespace torch_cpullm::kernels::avx512vnni

#include "isa/region_end.h"
