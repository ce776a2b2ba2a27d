#include "runtime/parallel.h"

#include <pthread.h>

namespace torch_cpullm::runtime {
namespace {

std::atomic<int> count{0};
const int registered = pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1, std::memory_order_relaxed); });

}  // namespace

int forks() { return registered == 0 ? count.load(std::memory_order_relaxed) : 0; }

}  // namespace torch_cpullm::runtime
