#include "kernels/linear/linear.h"

#include "isa/avx512.h"
#include "kernels/linear/finish_body.h"
#include "kernels/linear/linear_body.h"

namespace torch_cpullm::kernels::avx512 {

const LinearFn linear_f32 = run_panel<TileF32>;
const LinearFn linear_bf16 = run_panel<TileBf16>;
const ExpandFn linear_expand = torch_cpullm::linear_expand;
const FinishFn linear_finish = torch_cpullm::linear_finish;

}  // namespace torch_cpullm::kernels::avx512

#include "isa/region_end.h"
