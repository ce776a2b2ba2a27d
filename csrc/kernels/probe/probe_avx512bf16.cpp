#include "kernels/probe/probe.h"

#define TORCH_CPULLM_AVX512BF16
#include "isa/avx512.h"
#include "kernels/probe/probe_body.h"

namespace torch_cpullm::kernels::avx512bf16 {

const PeakFn probe_bf16 = peak_bf16<>;

}  // namespace torch_cpullm::kernels::avx512bf16

#include "isa/region_end.h"
