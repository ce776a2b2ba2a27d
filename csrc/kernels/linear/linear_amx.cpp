#include "kernels/linear/linear.h"

#include "isa/amx.h"
#include "kernels/linear/amx_grouped.h"
#include "kernels/linear/amx_plain.h"
#include "kernels/linear/amx_two_level.h"

namespace torch_cpullm::kernels::amx {

const LinearFn linear_bf16 = run_bf16;
const LinearFn linear_s8 = run_s8<avx512vnni::linear_s8>;
const LinearFn linear_s8_grouped = run_grouped<WidenS8, avx512vnni::linear_s8_grouped>;
const LinearFn linear_u4 = run_two_level<avx512vnni::linear_u4>;
const LinearFn linear_u4_zero = run_grouped<WidenU4Zero, avx512vnni::linear_u4_zero>;

}  // namespace torch_cpullm::kernels::amx

#include "isa/region_end.h"
