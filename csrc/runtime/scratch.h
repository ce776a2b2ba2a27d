// Working memory of one op call, carved from a block that each calling thread keeps between calls: a decode step
// allocates nothing. Blocks above kKeepBytes are given back after the call: 128 MiB hold what an MLP of up to 24 k
// inner features takes at a time in bf16, whose pages would otherwise be mapped and zeroed again in every layer.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "runtime/huge_pages.h"

namespace torch_cpullm::runtime {

constexpr size_t kKeepBytes = size_t{128} << 20;

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(block_); }

  // Throws std::bad_alloc, which torch turns into a Python exception; nothing is half done at that point.
  void reserve(size_t bytes) {
    used_ = bytes;
    if (bytes <= size_) return;
    std::free(block_);
    block_ = nullptr;
    size_ = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    block_ = static_cast<std::byte*>(std::aligned_alloc(4096, rounded));
    if (!block_) throw std::bad_alloc();
    advise_huge_pages(block_, rounded);
    size_ = rounded;
  }
  void trim() {
    if (size_ <= kKeepBytes) return;
    std::free(block_);
    block_ = nullptr;
    size_ = 0;
  }
  // Of the last call.
  size_t used() const { return used_; }
  std::byte* at(size_t offset) const { return block_ + offset; }

 private:
  std::byte* block_ = nullptr;
  size_t size_ = 0, used_ = 0;
};

// Two passes over one plan: the first adds the sizes up, the second hands out pointers. A driver describes its buffers
// in one function that takes a Carver, and the sizes can never disagree with the pointers.
class Carver {
 public:
  explicit Carver(Scratch* scratch) : scratch_(scratch) {}
  template <class T>
  T* take(int64_t count) {
    const size_t start = next_;
    next_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    total_ = std::max(total_, next_);
    return scratch_ ? reinterpret_cast<T*>(scratch_->at(start)) : nullptr;
  }
  // What is taken from here on lies on what was taken before: for work that follows, one after the other.
  void restart() { next_ = 0; }
  size_t total() const { return total_; }

 private:
  Scratch* scratch_;
  size_t next_ = 0, total_ = 0;
};

Scratch& thread_scratch();

// Memory for as long as this lives, of which the calling thread keeps a second block: what goes from one plan's work to
// another's. One at a time.
class ThreadBlock {
 public:
  explicit ThreadBlock(size_t bytes);
  ThreadBlock(const ThreadBlock&) = delete;
  ThreadBlock& operator=(const ThreadBlock&) = delete;
  ~ThreadBlock() { scratch_.trim(); }
  std::byte* data() const { return scratch_.at(0); }

 private:
  Scratch& scratch_;
};

// Lays `plan(Carver&)` out in the calling thread's scratch, then runs `body()`.
template <class Plan, class Body>
void with_scratch(const Plan& plan, const Body& body) {
  Scratch& scratch = thread_scratch();
  Carver sizes(nullptr);
  plan(sizes);
  scratch.reserve(sizes.total());
  Carver pointers(&scratch);
  plan(pointers);
  body();
  scratch.trim();
}

}  // namespace torch_cpullm::runtime
