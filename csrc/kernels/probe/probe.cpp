// The choice of probes. Not in the kernel report: they are no part of any op of a model.
#include "kernels/probe/probe.h"

namespace torch_cpullm::kernels {
namespace {

using dispatch::usable_features;

bool can(uint64_t required) { return (usable_features() & required) == required; }

}  // namespace

StreamFn stream_read_kernel() {
  if (can(dispatch::kAvx512Set)) return avx512::probe_stream;
  return can(dispatch::kAvx2Set) ? avx2::probe_stream : scalar::probe_stream;
}

PeakFn peak_f32_kernel() {
  if (can(dispatch::kAvx512Set)) return avx512::probe_f32;
  return can(dispatch::kAvx2Set) ? avx2::probe_f32 : scalar::probe_f32;
}

PeakFn peak_bf16_kernel() {
  return can(dispatch::kAvx512Set | dispatch::kAvx512Bf16) ? avx512bf16::probe_bf16 : nullptr;
}

PeakFn peak_int8_kernel() {
  if (can(dispatch::kAvx512Set | dispatch::kAvx512Vnni)) return avx512vnni::probe_int8;
  if (can(dispatch::kAvx2Set | dispatch::kAvxVnni)) return avxvnni::probe_int8;
  return can(dispatch::kAvx2Set) ? avx2::probe_int8 : nullptr;
}

PeakFn peak_amx_bf16_kernel() { return can(dispatch::kAmxSet) ? amx::probe_bf16 : nullptr; }
PeakFn peak_amx_int8_kernel() { return can(dispatch::kAmxSet) ? amx::probe_int8 : nullptr; }

}  // namespace torch_cpullm::kernels
