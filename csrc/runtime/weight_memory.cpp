#include "runtime/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <mutex>

#include "runtime/huge_pages.h"

namespace torch_cpullm::runtime {
namespace {

constexpr size_t kHugePage = size_t{2} << 20, kChunk = size_t{64} << 20, kPage = 4096;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

class Chunk {
 public:
  // `bytes`: whole huge pages. One more is mapped, to begin at a border.
  explicit Chunk(size_t bytes) : mapped_(bytes + kHugePage), size_(bytes) {
    map_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map_ == MAP_FAILED) return;
    start_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(map_), kHugePage));
    advise_huge_pages(start_, size_);
  }
  ~Chunk() {
    if (map_ != MAP_FAILED) munmap(map_, mapped_);
  }
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  // Null when it is full.
  void* take(size_t bytes) {
    if (!start_ || size_ - used_ < bytes) return nullptr;
    void* place = start_ + used_;
    used_ += bytes;
    return place;
  }

 private:
  size_t mapped_, size_, used_ = 0;
  void* map_;
  uint8_t* start_ = nullptr;
};

std::mutex mutex;
std::weak_ptr<Chunk> current;  // the one that is being filled; alive as long as a weight in it is

}  // namespace

std::shared_ptr<void> weight_memory(size_t bytes, bool lasting) {
  const std::lock_guard<std::mutex> lock(mutex);
  const size_t wanted = round_up(std::max(bytes, kPage), kPage);
  std::shared_ptr<Chunk> chunk = lasting ? current.lock() : nullptr;
  void* place = chunk ? chunk->take(wanted) : nullptr;
  if (!place) {
    chunk = std::make_shared<Chunk>(std::max(lasting ? kChunk : kHugePage, round_up(wanted, kHugePage)));
    place = chunk->take(wanted);
    if (!place) return nullptr;
    if (lasting && wanted < kChunk) current = chunk;
  }
  return {chunk, place};
}

}  // namespace torch_cpullm::runtime
