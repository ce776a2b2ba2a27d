#include "kernels/linear/linear.h"

#define TORCH_CPULLM_AVXVNNI
#include "isa/avx2.h"
#include "kernels/linear/linear_body.h"

namespace torch_cpullm::kernels::avxvnni {

const LinearKernel linear_s8{run_tile<TileS8>, kLinearTileRows};

}  // namespace torch_cpullm::kernels::avxvnni

#include "isa/region_end.h"
