// The table of row kernels, best first; one entry is a whole set.
#include "kernels/rowwise/rowwise.h"

namespace torch_cpullm::kernels {
namespace {

dispatch::Kernel<const RowwiseKernels*> table[] = {
    {"rowwise__avx512", "avx512", dispatch::kAvx512Set, &avx512::rowwise},
    {"rowwise__avx2", "avx2", dispatch::kAvx2Set, &avx2::rowwise},
    {"rowwise__scalar", "scalar", 0, &scalar::rowwise},
};

}  // namespace

const RowwiseKernels& rowwise_kernels() { return *dispatch::choose(table).counted(); }

}  // namespace torch_cpullm::kernels
