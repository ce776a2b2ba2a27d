#include "drivers/probe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "runtime/parallel.h"

namespace torch_cpullm::drivers {

double measure_read(const float* data, int64_t n, int threads, int64_t repeats) {
  const kernels::StreamFn kernel = kernels::stream_read_kernel();
  std::atomic<float> sink{0.0f};
  double best = 0.0;
  for (int64_t pass = 0; pass < repeats; ++pass) {
    double start = 0.0, stop = 0.0;
    runtime::parallel(threads, [&](const runtime::Team& team) {
      const runtime::Range mine = team.share(n);
      team.barrier();
      if (team.rank == 0) start = omp_get_wtime();
      const float sum = kernel(data + mine.begin, mine.end - mine.begin);
      team.barrier();
      if (team.rank == 0) stop = omp_get_wtime();
      sink.store(sum, std::memory_order_relaxed);
    });
    best = std::max(best, static_cast<double>(n) * sizeof(float) / (stop - start));
  }
  return best;
}

double measure_peak(kernels::PeakFn kernel, int threads, double seconds) {
  if (!kernel) return 0.0;
  std::atomic<int64_t> operations{0};
  double start = 0.0, stop = 0.0;
  runtime::parallel(threads, [&](const runtime::Team& team) {
    float sink = 0.0f;
    int64_t done = 0;
    team.barrier();
    if (team.rank == 0) start = omp_get_wtime();
    const double until = omp_get_wtime() + seconds;
    while (omp_get_wtime() < until) done += kernel(64, &sink);
    operations.fetch_add(done);
    team.barrier();
    if (team.rank == 0) stop = omp_get_wtime();
  });
  return static_cast<double>(operations.load()) / (stop - start);
}

double measure_round_trip(int64_t iterations) {
  std::array<double, 10> batches{};
  alignas(64) std::atomic<int64_t> ball{0};
  bool alone = false;
  for (size_t batch = 0; batch < batches.size(); ++batch) {
    ball.store(0);
    runtime::parallel(2, [&](const runtime::Team& team) {
      if (team.size < 2) {
        alone = true;
        return;
      }
      team.barrier();
      const double start = omp_get_wtime();
      for (int64_t i = 0; i < iterations; ++i) {
        while (ball.load(std::memory_order_acquire) != 2 * i + team.rank) {
        }
        ball.store(2 * i + team.rank + 1, std::memory_order_release);
      }
      team.barrier();
      if (team.rank == 0) batches[batch] = (omp_get_wtime() - start) / static_cast<double>(iterations);
    });
  }
  if (alone) return 0.0;
  std::nth_element(batches.begin(), batches.begin() + 5, batches.end());
  return batches[5];
}

}  // namespace torch_cpullm::drivers
