// The table of sampling kernels, best first; one entry is a whole set.
#include "kernels/sample/sample.h"

namespace torch_cpullm::kernels {
namespace {

dispatch::Kernel<const SampleKernels*> table[] = {
    {"sample__avx512", "avx512", dispatch::kAvx512Set, &avx512::sample},
    {"sample__avx2", "avx2", dispatch::kAvx2Set, &avx2::sample},
    {"sample__scalar", "scalar", 0, &scalar::sample},
};

}  // namespace

const SampleKernels& sample_kernels() { return *dispatch::choose(table).counted(); }

}  // namespace torch_cpullm::kernels
