#include "kernels/linear/linear.h"

#define TORCH_CPULLM_AVX512VNNI
#include "isa/avx512.h"
#include "kernels/linear/linear_body.h"
#include "kernels/linear/tile_widened.h"

namespace torch_cpullm::kernels::avx512vnni {

const LinearFn linear_s8 = run_panel<TileS8>;
const LinearFn linear_s8_grouped = run_panel<TileGrouped<GroupedS8>>;
const LinearFn linear_u4 = run_panel<TileGrouped<GroupedU4>>;
const LinearFn linear_u4_zero = run_panel<TileGrouped<GroupedU4Zero>>;

}  // namespace torch_cpullm::kernels::avx512vnni

#include "isa/region_end.h"
