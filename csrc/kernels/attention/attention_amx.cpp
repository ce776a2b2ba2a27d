#include "kernels/attention/attention.h"

#include "isa/amx.h"
#include "kernels/attention/amx_product.h"

namespace torch_cpullm::kernels::amx {

const AttentionProducts attention_int8{
    [](const ScoreTask& t) { scores_on_tiles(t, avx512vnni::attention_int8.scores); },
    [](const ValueTask& t) { values_on_tiles(t, avx512vnni::attention_int8.values); }};

}  // namespace torch_cpullm::kernels::amx

#include "isa/region_end.h"
