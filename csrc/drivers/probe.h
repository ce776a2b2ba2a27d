// Timing of the probes: bytes and operations per second on a team of threads.
#pragma once
#include <cstdint>

#include "kernels/probe/probe.h"

namespace torch_cpullm::drivers {

// The best of `repeats` passes over n floats, each member of the team reading its own share: bytes per second.
double measure_read(const float* data, int64_t n, int threads, int64_t repeats);
// Operations per second of all threads together, over about `seconds`. 0 without a kernel.
double measure_peak(kernels::PeakFn kernel, int threads, double seconds);
// Seconds for a cache line to go to another thread and back; the median of ten batches. 0 where there is one thread.
double measure_round_trip(int64_t iterations);

}  // namespace torch_cpullm::drivers
