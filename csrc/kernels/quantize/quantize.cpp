// The table of weight quantisation kernels, best first; one entry is a whole set.
#include "kernels/quantize/quantize.h"

namespace torch_cpullm::kernels {
namespace {

dispatch::Kernel<const QuantizeKernels*> table[] = {
    {"quantize__avx512", "avx512", dispatch::kAvx512Set, &avx512::quantize},
    {"quantize__avx2", "avx2", dispatch::kAvx2Set, &avx2::quantize},
    {"quantize__scalar", "scalar", 0, &scalar::quantize},
};

}  // namespace

const QuantizeKernels& quantize_kernels() { return *dispatch::choose(table).counted(); }

}  // namespace torch_cpullm::kernels
