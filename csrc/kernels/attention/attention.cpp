// The table of attention kernels, best first; one entry is a whole set.
#include "kernels/attention/attention.h"

namespace torch_cpullm::kernels {
namespace {

dispatch::Kernel<const AttentionKernels*> table[] = {
    {"attention__12x32__avx512", "avx512", dispatch::kAvx512Set, &avx512::attention},
    {"attention__2x32__avx2", "avx2", dispatch::kAvx2Set, &avx2::attention},
    {"attention__1x32__scalar", "scalar", 0, &scalar::attention},
};

}  // namespace

const AttentionKernels& attention_kernels() { return *dispatch::choose(table).counted(); }

}  // namespace torch_cpullm::kernels
