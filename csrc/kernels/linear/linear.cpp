// The table of linear kernels, best first. Names follow <family>_<out>_<act>_<weight>__<tile>__<isa>.
#include "kernels/linear/linear.h"

namespace torch_cpullm::kernels {
namespace {

using dispatch::Kernel;
using Table = Kernel<const LinearKernel*>;

Table f32_table[] = {
    {"linear_f32_f32_f32__6x64__avx512", "avx512", dispatch::kAvx512Set, &avx512::linear_f32},
    {"linear_f32_f32_f32__1x64__avx2", "avx2", dispatch::kAvx2Set, &avx2::linear_f32},
    {"linear_f32_f32_f32__1x64__scalar", "scalar", 0, &scalar::linear_f32},
};

Table bf16_table[] = {
    {"linear_f32_bf16_bf16__6x64__avx512bf16", "avx512", dispatch::kAvx512Set | dispatch::kAvx512Bf16,
     &avx512bf16::linear_bf16},
    {"linear_f32_bf16_bf16__6x64__avx512", "avx512", dispatch::kAvx512Set, &avx512::linear_bf16},
    {"linear_f32_bf16_bf16__1x64__avx2", "avx2", dispatch::kAvx2Set, &avx2::linear_bf16},
    {"linear_f32_bf16_bf16__1x64__scalar", "scalar", 0, &scalar::linear_bf16},
};

Table s8_table[] = {
    {"linear_f32_s8_s8__6x64__avx512vnni", "avx512", dispatch::kAvx512Set | dispatch::kAvx512Vnni,
     &avx512vnni::linear_s8},
    {"linear_f32_s8_s8__1x64__avxvnni", "avx2", dispatch::kAvx2Set | dispatch::kAvxVnni, &avxvnni::linear_s8},
    {"linear_f32_s8_s8__1x64__avx2", "avx2", dispatch::kAvx2Set, &avx2::linear_s8},
    {"linear_f32_s8_s8__1x64__scalar", "scalar", 0, &scalar::linear_s8},
};

}  // namespace

LinearKernel linear_kernel(layout::Format format) {
  switch (format) {
    case layout::Format::f32:
      return *dispatch::choose(f32_table).counted();
    case layout::Format::bf16:
      return *dispatch::choose(bf16_table).counted();
    default:
      return *dispatch::choose(s8_table).counted();
  }
}

}  // namespace torch_cpullm::kernels
