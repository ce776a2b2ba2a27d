// Asking for huge pages, where the system leaves it to the program (transparent huge pages set to "madvise").
#pragma once
#include <cstddef>

namespace torch_cpullm::runtime {

// Below this a 2 MiB page would mostly be waste, and the few page walks saved could not be measured.
constexpr size_t kHugeFrom = size_t{4} << 20;

// Before the memory is touched first. Best effort: a refusal changes nothing but speed.
void advise_huge_pages(void* start, size_t bytes);

}  // namespace torch_cpullm::runtime
