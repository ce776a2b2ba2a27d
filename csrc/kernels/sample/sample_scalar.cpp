#include "kernels/sample/sample.h"

#include "isa/scalar.h"
#include "kernels/sample/sample_body.h"

namespace torch_cpullm::kernels::scalar {

const SampleKernels sample{scale, maxima, count, gather, masses, block_masses, weights};

}  // namespace torch_cpullm::kernels::scalar
