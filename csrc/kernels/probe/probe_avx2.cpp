#include "kernels/probe/probe.h"

#include "isa/avx2.h"
#include "kernels/probe/probe_body.h"

namespace torch_cpullm::kernels::avx2 {

const StreamFn probe_stream = stream_read;
const PeakFn probe_f32 = peak_f32;
const PeakFn probe_int8 = peak_int8<>;

}  // namespace torch_cpullm::kernels::avx2

#include "isa/region_end.h"
