#include "kernels/quantize/quantize.h"

#include "isa/avx2.h"
#include "kernels/quantize/quantize_body.h"

namespace torch_cpullm::kernels::avx2 {

const QuantizeKernels quantize{widen, extremes, encode, error};

}  // namespace torch_cpullm::kernels::avx2

#include "isa/region_end.h"
