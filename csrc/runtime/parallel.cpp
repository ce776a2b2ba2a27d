#include "runtime/parallel.h"

#include <pthread.h>

namespace torch_cpullm::runtime {
namespace {

std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

bool is_forked_child() { return registered == 0 && forked.load(std::memory_order_relaxed); }

}  // namespace torch_cpullm::runtime
