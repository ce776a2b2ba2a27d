#include "kernels/probe/probe.h"

#define TORCH_CPULLM_AVXVNNI
#include "isa/avx2.h"
#include "kernels/probe/probe_body.h"

namespace torch_cpullm::kernels::avxvnni {

const PeakFn probe_int8 = peak_int8<>;

}  // namespace torch_cpullm::kernels::avxvnni

#include "isa/region_end.h"
