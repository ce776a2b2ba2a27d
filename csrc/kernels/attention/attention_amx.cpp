#include "kernels/attention/attention.h"

#include "isa/amx.h"
#include "kernels/attention/amx_product.h"

namespace torch_cpullm::kernels::amx {
namespace {

// Fewer rows go by vectors, with the same bits: the sums are whole numbers.
constexpr int64_t kFewestRows = 5;
bool fits(int64_t rows, int64_t channels) { return rows >= kFewestRows && channels >= Int8Tiles::kFewestChannels; }

void scores_int8(const ScoreTask& t) {
  if (!fits(t.q.count, t.channels)) return avx512vnni::attention_int8.scores(t);
  t.q.count <= Int8Pairs::kRows ? scores_on_tiles<Int8Pairs>(t) : scores_on_tiles<Int8Tiles>(t);
}
void values_int8(const ValueTask& t) {
  if (!fits(t.p.count, t.channels)) return avx512vnni::attention_int8.values(t);
  t.p.count <= Int8Pairs::kRows ? values_on_tiles<Int8Pairs>(t) : values_on_tiles<Int8Tiles>(t);
}

}  // namespace

const AttentionProducts attention_bf16{scores_on_tiles<Bf16Tiles>, values_on_tiles<Bf16Tiles>};
const AttentionProducts attention_int8{scores_int8, values_int8};

}  // namespace torch_cpullm::kernels::amx

#include "isa/region_end.h"
