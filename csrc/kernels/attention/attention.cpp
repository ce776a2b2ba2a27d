// The tables of attention kernels, best first.
#include "kernels/attention/attention.h"

namespace torch_cpullm::kernels {
namespace {

using dispatch::kAvx2Set, dispatch::kAvx512Set;
using Products = dispatch::Kernel<const AttentionProducts*>;
constexpr uint64_t kBf16 = kAvx512Set | dispatch::kAvx512Bf16;
constexpr uint64_t kVnni512 = kAvx512Set | dispatch::kAvx512Vnni;
constexpr uint64_t kVnni256 = kAvx2Set | dispatch::kAvxVnni;

Products f32_table[] = {
    {"attention_f32__12x32__avx512", "avx512", kAvx512Set, &avx512::attention_f32},
    {"attention_f32__2x32__avx2", "avx2", kAvx2Set, &avx2::attention_f32},
    {"attention_f32__1x32__scalar", "scalar", 0, &scalar::attention_f32},
};
Products bf16_table[] = {
    {"attention_bf16__16x64__amx", "amx", dispatch::kAmxSet, &amx::attention_bf16},
    {"attention_bf16__12x32__avx512bf16", "avx512", kBf16, &avx512bf16::attention_bf16},
    {"attention_bf16__12x32__avx512", "avx512", kAvx512Set, &avx512::attention_bf16},
    {"attention_bf16__2x32__avx2", "avx2", kAvx2Set, &avx2::attention_bf16},
    {"attention_bf16__1x32__scalar", "scalar", 0, &scalar::attention_bf16},
};
Products int8_table[] = {
    {"attention_int8__16x32__amx", "amx", dispatch::kAmxSet, &amx::attention_int8},
    {"attention_int8__6x32__avx512vnni", "avx512", kVnni512, &avx512vnni::attention_int8},
    {"attention_int8__1x32__avxvnni", "avx2", kVnni256, &avxvnni::attention_int8},
    {"attention_int8__1x32__avx2", "avx2", kAvx2Set, &avx2::attention_int8},
    {"attention_int8__1x16__scalar", "scalar", 0, &scalar::attention_int8},
};
dispatch::Kernel<const AttentionPasses*> pass_table[] = {
    {"attention_passes__avx512", "avx512", kAvx512Set, &avx512::attention_passes},
    {"attention_passes__avx2", "avx2", kAvx2Set, &avx2::attention_passes},
    {"attention_passes__scalar", "scalar", 0, &scalar::attention_passes},
};

}  // namespace

const AttentionProducts& attention_products(layout::Format format) {
  switch (format) {
    case layout::Format::f32:
      return *dispatch::choose(f32_table).counted();
    case layout::Format::bf16:
      return *dispatch::choose(bf16_table).counted();
    default:
      return *dispatch::choose(int8_table).counted();
  }
}

const AttentionPasses& attention_passes() { return *dispatch::choose(pass_table).counted(); }

}  // namespace torch_cpullm::kernels
