// A kernel as dispatch sees it, and the choice among a family's kernels.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "dispatch/features.h"

namespace torch_cpullm::dispatch {

// One row of the report: every kernel that was compiled, whether this CPU can run it, and how often an op chose it.
struct KernelRecord {
  const char* name;
  const char* isa;
  uint64_t required;
  std::atomic<uint64_t> calls{0};

  KernelRecord(const char* kernel_name, const char* isa_word, uint64_t features);
  bool runs_here() const { return (usable_features() & required) == required; }
};

template <class Fn>
struct Kernel {
  KernelRecord record;
  Fn fn;

  Kernel(const char* name, const char* isa, uint64_t required, Fn function)
      : record(name, isa, required), fn(function) {}
  Fn counted() {
    record.calls.fetch_add(1, std::memory_order_relaxed);
    return fn;
  }
};

// The first of `table` (best first, the scalar one last) that this CPU runs.
template <class Fn, int Count>
Kernel<Fn>& choose(Kernel<Fn> (&table)[Count]) {
  for (Kernel<Fn>& kernel : table)
    if (kernel.record.runs_here()) return kernel;
  return table[Count - 1];
}

// "name<TAB>isa<TAB>calls<TAB>missing features" a line, for every kernel of the library.
std::string kernel_report();

}  // namespace torch_cpullm::dispatch
