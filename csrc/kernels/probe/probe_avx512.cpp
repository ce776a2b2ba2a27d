#include "kernels/probe/probe.h"

#include "isa/avx512.h"
#include "kernels/probe/probe_body.h"

namespace torch_cpullm::kernels::avx512 {

const StreamFn probe_stream = stream_read;
const PeakFn probe_f32 = peak_f32;

}  // namespace torch_cpullm::kernels::avx512

#include "isa/region_end.h"
