#include "isa/avx512.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_body.h"

namespace torch_cpullm::kernels::avx512 {

const LinearKernel linear_f32{run_tile<TileF32>, kLinearTileRows};
const LinearKernel linear_bf16{run_tile<TileBf16>, kLinearTileRows};

}  // namespace torch_cpullm::kernels::avx512

#include "isa/region_end.h"
