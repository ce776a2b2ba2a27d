#include "kernels/linear/linear.h"

#include "isa/scalar.h"
#include "kernels/linear/finish_body.h"
#include "kernels/linear/linear_body.h"

namespace torch_cpullm::kernels::scalar {

const LinearFn linear_f32 = run_panel<TileF32>;
const LinearFn linear_bf16 = run_panel<TileBf16>;
const LinearFn linear_s8 = run_panel<TileS8>;
const LinearFn linear_s8_grouped = run_panel<TileGrouped<GroupedS8>>;
const LinearFn linear_u4 = run_panel<TileGrouped<GroupedU4>>;
const LinearFn linear_u4_zero = run_panel<TileGrouped<GroupedU4Zero>>;
const ExpandFn linear_expand = torch_cpullm::linear_expand;
const FinishFn linear_finish = torch_cpullm::linear_finish;

}  // namespace torch_cpullm::kernels::scalar
