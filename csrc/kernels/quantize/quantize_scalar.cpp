#include "kernels/quantize/quantize.h"

#include "isa/scalar.h"
#include "kernels/quantize/quantize_body.h"

namespace torch_cpullm::kernels::scalar {

const QuantizeKernels quantize{widen, extremes, encode, error};

}  // namespace torch_cpullm::kernels::scalar
