// The table of linear kernels, best first. Names follow <family>_<out>_<act>_<weight>__<tile>__<isa>.
#include "kernels/linear/linear.h"

namespace torch_cpullm::kernels {
namespace {

using dispatch::Kernel;
using layout::Codes;
using Table = Kernel<LinearFn>;

constexpr uint64_t kVnni512 = dispatch::kAvx512Set | dispatch::kAvx512Vnni;
constexpr uint64_t kVnni256 = dispatch::kAvx2Set | dispatch::kAvxVnni;

Table f32_table[] = {
    {"linear_f32_f32_f32__16x16__avx512", "avx512", dispatch::kAvx512Set, avx512::linear_f32},
    {"linear_f32_f32_f32__6x16__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_f32},
    {"linear_f32_f32_f32__1x16__scalar", "scalar", 0, scalar::linear_f32},
};

Table bf16_table[] = {
    {"linear_f32_bf16_bf16__32x32__amx", "amx", dispatch::kAmxSet, amx::linear_bf16},
    {"linear_f32_bf16_bf16__16x16__avx512bf16", "avx512", dispatch::kAvx512Set | dispatch::kAvx512Bf16,
     avx512bf16::linear_bf16},
    {"linear_f32_bf16_bf16__16x16__avx512", "avx512", dispatch::kAvx512Set, avx512::linear_bf16},
    {"linear_f32_bf16_bf16__6x16__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_bf16},
    {"linear_f32_bf16_bf16__1x16__scalar", "scalar", 0, scalar::linear_bf16},
};

Table s8_table[] = {
    {"linear_f32_s8_s8__32x32__amx", "amx", dispatch::kAmxSet, amx::linear_s8},
    {"linear_f32_s8_s8__16x16__avx512vnni", "avx512", kVnni512, avx512vnni::linear_s8},
    {"linear_f32_s8_s8__6x16__avxvnni", "avx2", kVnni256, avxvnni::linear_s8},
    {"linear_f32_s8_s8__6x16__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_s8},
    {"linear_f32_s8_s8__1x16__scalar", "scalar", 0, scalar::linear_s8},
};

Table s8_grouped_table[] = {
    {"linear_f32_s8_s8g__16x16__amx", "amx", dispatch::kAmxSet, amx::linear_s8_grouped},
    {"linear_f32_s8_s8g__12x16__avx512vnni", "avx512", kVnni512, avx512vnni::linear_s8_grouped},
    {"linear_f32_s8_s8g__3x16__avxvnni", "avx2", kVnni256, avxvnni::linear_s8_grouped},
    {"linear_f32_s8_s8g__3x16__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_s8_grouped},
    {"linear_f32_s8_s8g__1x16__scalar", "scalar", 0, scalar::linear_s8_grouped},
};

Table u4_table[] = {
    {"linear_f32_s8_u4__32x32__amx", "amx", dispatch::kAmxSet, amx::linear_u4},
    {"linear_f32_s8_u4__12x16__avx512vnni", "avx512", kVnni512, avx512vnni::linear_u4},
    {"linear_f32_s8_u4__3x16__avxvnni", "avx2", kVnni256, avxvnni::linear_u4},
    {"linear_f32_s8_u4__3x16__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_u4},
    {"linear_f32_s8_u4__1x16__scalar", "scalar", 0, scalar::linear_u4},
};

Table u4_zero_table[] = {
    {"linear_f32_s8_u4z__16x16__amx", "amx", dispatch::kAmxSet, amx::linear_u4_zero},
    {"linear_f32_s8_u4z__12x16__avx512vnni", "avx512", kVnni512, avx512vnni::linear_u4_zero},
    {"linear_f32_s8_u4z__3x16__avxvnni", "avx2", kVnni256, avxvnni::linear_u4_zero},
    {"linear_f32_s8_u4z__3x16__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_u4_zero},
    {"linear_f32_s8_u4z__1x16__scalar", "scalar", 0, scalar::linear_u4_zero},
};

Kernel<ExpandFn> expand_table[] = {
    {"linear_expand__avx512", "avx512", dispatch::kAvx512Set, avx512::linear_expand},
    {"linear_expand__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_expand},
    {"linear_expand__scalar", "scalar", 0, scalar::linear_expand},
};

Kernel<FinishFn> finish_table[] = {
    {"linear_finish__avx512", "avx512", dispatch::kAvx512Set, avx512::linear_finish},
    {"linear_finish__avx2", "avx2", dispatch::kAvx2Set, avx2::linear_finish},
    {"linear_finish__scalar", "scalar", 0, scalar::linear_finish},
};

}  // namespace

LinearFn linear_kernel(const layout::WeightFormat& format) {
  switch (format.codes) {
    case Codes::f32:
      return dispatch::choose(f32_table).counted();
    case Codes::bf16:
      return dispatch::choose(bf16_table).counted();
    case Codes::int8:
      return (format.group ? dispatch::choose(s8_grouped_table) : dispatch::choose(s8_table)).counted();
    default:
      return (format.asymmetric ? dispatch::choose(u4_zero_table) : dispatch::choose(u4_table)).counted();
  }
}

// 120 rows are tiles of 12 or 6, their 64-column sums 30 KiB. AMX multiplies so fast that reading the weights shows:
// 128 rows of 4096 bf16 ask for 15 GB/s a core, of which 10 came.
LinearBlocking linear_blocking(const layout::WeightFormat& format) {
  const bool tiles = (dispatch::usable_features() & dispatch::kAmxSet) == dispatch::kAmxSet;
  return tiles && format.codes != Codes::f32 ? LinearBlocking{256, true} : LinearBlocking{120, false};
}

ExpandFn expand_kernel() { return dispatch::choose(expand_table).counted(); }
FinishFn finish_kernel() { return dispatch::choose(finish_table).counted(); }

}  // namespace torch_cpullm::kernels
