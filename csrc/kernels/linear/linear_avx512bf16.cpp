#include "kernels/linear/linear.h"

#define TORCH_CPULLM_AVX512BF16
#include "isa/avx512.h"
#include "kernels/linear/linear_body.h"

namespace torch_cpullm::kernels::avx512bf16 {

const LinearFn linear_bf16 = run_panel<TileBf16>;

}  // namespace torch_cpullm::kernels::avx512bf16

#include "isa/region_end.h"
