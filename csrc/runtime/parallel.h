// One parallel region per op: the body runs once on each member of a team, with barriers between its phases.
// The runtime is the OpenMP that torch has loaded already; a second one is never linked.
#pragma once
#include <omp.h>

#include <atomic>
#include <cstdint>

namespace torch_cpullm::runtime {

struct Range {
  int64_t begin, end;
};

// A contiguous share of `count` items for member `rank` of `size`; the first members take the remainder.
inline Range share_of(int64_t count, int rank, int size) {
  const int64_t base = count / size, extra = count % size;
  const int64_t begin = rank * base + (rank < extra ? rank : extra);
  return {begin, begin + base + (rank < extra ? 1 : 0)};
}

struct Team {
  int rank, size;

  Range share(int64_t count) const { return share_of(count, rank, size); }
  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
};

// Items handed out one by one, for tasks of uneven cost. Which thread takes which item never changes a result.
class TaskCounter {
 public:
  TaskCounter() = default;
  TaskCounter(const TaskCounter&) noexcept {}  // a copy starts anew: only unused counters are copied
  int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> next_{0};
};

// How many fork() lie between this process and the one that loaded the library: threads are not inherited, nor is being
// a rank.
int forks();

// True in a child of fork(): the OpenMP threads did not survive, and waking them would hang.
inline bool is_forked_child() { return forks() > 0; }

// Calls body(team) on `threads` members, or on one inside another parallel region and in a forked child.
// The body must not throw: an exception cannot leave an OpenMP region.
template <class Body>
void parallel(int threads, const Body& body) {
  if (threads <= 1 || omp_in_parallel() || is_forked_child()) {
    body(Team{0, 1});
    return;
  }
#pragma omp parallel num_threads(threads)
  body(Team{omp_get_thread_num(), omp_get_num_threads()});
}

}  // namespace torch_cpullm::runtime
