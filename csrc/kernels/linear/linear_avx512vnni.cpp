#include "kernels/linear/linear.h"

#define TORCH_CPULLM_AVX512VNNI
#include "isa/avx512.h"
#include "kernels/linear/linear_body.h"

namespace torch_cpullm::kernels::avx512vnni {

const LinearKernel linear_s8{run_tile<TileS8>, kLinearTileRows};

}  // namespace torch_cpullm::kernels::avx512vnni

#include "isa/region_end.h"
