#include "kernels/probe/probe.h"

#define TORCH_CPULLM_AVX512VNNI
#include "isa/avx512.h"
#include "kernels/probe/probe_body.h"

namespace torch_cpullm::kernels::avx512vnni {

const PeakFn probe_int8 = peak_int8<>;

}  // namespace torch_cpullm::kernels::avx512vnni

#include "isa/region_end.h"
