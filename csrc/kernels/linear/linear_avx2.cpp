#include "isa/avx2.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_body.h"

namespace torch_cpullm::kernels::avx2 {

const LinearKernel linear_f32{run_tile<TileF32>, kLinearTileRows};
const LinearKernel linear_bf16{run_tile<TileBf16>, kLinearTileRows};
const LinearKernel linear_s8{run_tile<TileS8>, kLinearTileRows};

}  // namespace torch_cpullm::kernels::avx2

#include "isa/region_end.h"
