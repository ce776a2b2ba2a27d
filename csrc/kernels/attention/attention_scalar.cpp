#include "kernels/attention/attention.h"

#include "isa/scalar.h"
#include "kernels/attention/passes_body.h"
#include "kernels/attention/product_body.h"
#include "kernels/attention/product_int8.h"

namespace torch_cpullm::kernels::scalar {

const AttentionProducts attention_f32{scores<F32Product>, values<F32Product>};
const AttentionProducts attention_bf16{scores<Bf16Product>, values<Bf16Product>};
const AttentionProducts attention_int8{scores<Int8Product>, values<Int8Product>};
const AttentionPasses attention_passes = kPasses;

}  // namespace torch_cpullm::kernels::scalar
