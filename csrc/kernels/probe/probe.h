// What the machine can do at best, measured with the library's own lanes: the denominators of every share we report.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"

namespace torch_cpullm::kernels {

// Runs `iterations` rounds of independent multiply-accumulate chains; returns operations done (2 a multiply-add).
using PeakFn = int64_t (*)(int64_t iterations, float* sink);
// Reads n floats once, in order; returns something that depends on all of them, so that no read can be left out.
using StreamFn = float (*)(const float* data, int64_t n);

StreamFn stream_read_kernel();
PeakFn peak_f32_kernel();
// Null where the CPU has no instruction for it.
PeakFn peak_bf16_kernel();
PeakFn peak_int8_kernel();
PeakFn peak_amx_bf16_kernel();
PeakFn peak_amx_int8_kernel();

namespace scalar {
extern const StreamFn probe_stream;
extern const PeakFn probe_f32;
}  // namespace scalar
namespace avx2 {
extern const StreamFn probe_stream;
extern const PeakFn probe_f32, probe_int8;
}  // namespace avx2
namespace avxvnni {
extern const PeakFn probe_int8;
}
namespace avx512 {
extern const StreamFn probe_stream;
extern const PeakFn probe_f32;
}  // namespace avx512
namespace avx512bf16 {
extern const PeakFn probe_bf16;
}
namespace avx512vnni {
extern const PeakFn probe_int8;
}
namespace amx {
extern const PeakFn probe_bf16, probe_int8;
}

}  // namespace torch_cpullm::kernels
