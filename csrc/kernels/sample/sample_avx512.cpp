#include "kernels/sample/sample.h"

#include "isa/avx512.h"
#include "kernels/sample/sample_body.h"

namespace torch_cpullm::kernels::avx512 {

const SampleKernels sample{scale, maxima, count, gather, masses, block_masses, weights};

}  // namespace torch_cpullm::kernels::avx512

#include "isa/region_end.h"
