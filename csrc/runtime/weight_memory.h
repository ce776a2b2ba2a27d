// Memory for packed weights: side by side in chunks that begin on huge pages.
//
// A weight of 9 MiB from malloc has up to 4 MiB of small pages at its two ends; one row then read 12.4 instead of
// 13.3 GB/s (int4), 14.7 instead of 16.4 (int8). A chunk is unmapped with the last weight in it; what was not used of
// it was never backed by memory. A weight that does not last has a chunk of its own: among others it would leave a
// hole. (From malloc as well: a few bytes taken of what it left, and the next one did not fit; of 20 weights of 17 MB,
// packed one after the other, all stayed.)
#pragma once
#include <cstddef>
#include <memory>

namespace torch_cpullm::runtime {

// Aligned to 4096 bytes, as are the parts of a packed weight; null when the system has none left. Safe to call from
// several threads.
std::shared_ptr<void> weight_memory(size_t bytes, bool lasting);

}  // namespace torch_cpullm::runtime
