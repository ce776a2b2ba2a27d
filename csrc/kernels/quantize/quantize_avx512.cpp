#include "kernels/quantize/quantize.h"

#include "isa/avx512.h"
#include "kernels/quantize/quantize_body.h"

namespace torch_cpullm::kernels::avx512 {

const QuantizeKernels quantize{widen, extremes, encode, error};

}  // namespace torch_cpullm::kernels::avx512

#include "isa/region_end.h"
