#include "kernels/attention/attention.h"

#include "isa/avx512.h"
#include "kernels/attention/passes_body.h"
#include "kernels/attention/product_body.h"

namespace torch_cpullm::kernels::avx512 {

const AttentionProducts attention_f32{scores<F32Product>, values<F32Product>};
const AttentionProducts attention_bf16{scores<Bf16Product>, values<Bf16Product>};
const AttentionPasses attention_passes = kPasses;

}  // namespace torch_cpullm::kernels::avx512

#include "isa/region_end.h"
