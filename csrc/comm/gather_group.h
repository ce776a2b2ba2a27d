// Ranks that reach each other through a library's all-gather (oneCCL, gloo). The library sums nothing: its order would
// depend on where in a message an element lies, and bfloat16 would be rounded at each step. Every rank sums by itself,
// in the order of ranks, and so gets the bits that any other transport gives.
//
//   blocks   | ticket | part of rank 0 | ticket | part of rank 1 | ...     64 bytes, then the part, to a multiple of 64
//
// Nor does the library notice when ranks ask for different things: it gives wrong numbers, or an error of the network.
// So ahead of each part travels a ticket that says what its rank wants.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "comm/group.h"
#include "comm/wait.h"

namespace torch_cpullm::comm {

// How the ranks of a group wait for each other.
struct Patience {
  std::chrono::milliseconds duration;
  std::vector<int64_t> pids;  // of every rank; 0: on another host, or not to be seen from here
  bool crowded;               // more ranks on this host than CPUs for them
};

// Memory that grows and forgets: aligned to pages, and taken from the system only where it is written.
class GrowingMemory {
 public:
  std::byte* reserve(int64_t bytes);
  // Leaves the memory to whoever still uses it.
  void abandon() { (void)memory_.release(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  int64_t bytes_ = 0;
};

class GatherGroup : public Group {
 public:
  // The two buffers hold a block of every rank: 256 MB with 2 ranks, of which only what was used is memory.
  int64_t most_bytes() const override { return int64_t{64} << 20; }
  std::byte* part(int64_t bytes) override;

 protected:
  enum class State { running, done, failed };

  GatherGroup(std::string transport, int rank, int size, const Patience& patience);

  // Begins to exchange blocks of as many bytes from each rank, ours in its place already. One thing at a time.
  virtual void begin_gather(std::byte* blocks, int64_t bytes) = 0;
  // Of what was begun last; moves it on.
  virtual State test() = 0;
  // What test() found, in the library's words.
  virtual std::string fault() const = 0;

  Parts exchange(const Message& message) override;
  void meet(const Message&, Parts&) override {}  // a gather asks for no second phase

  // Throws Failure if not all ranks want this. For a message whose parts go another way.
  void check(const Message& message);
  // begin(), and then returns when that is done.
  template <class Begin>
  void complete(const Message& message, const Begin& begin) {
    try {
      begin();
      wait(message);
    } catch (...) {
      abandon();
      throw;
    }
  }
  // After a failure the library may go on reading and writing: leaves it everything, for good.
  virtual void abandon();

  std::byte* own_part() const { return part_; }

 private:
  struct Ticket;
  Ticket& ticket(int rank) const;
  void gather(std::byte* blocks, int64_t block_bytes, const Message& message);
  // Throws Failure for a ticket that has come and asks for something else: the reason behind most errors of a library,
  // and behind some ranks that have ended. Not asked before there is trouble, as a ticket may have come in half.
  void compare(const Message& message) const;
  void wait(const Message& message);
  std::string trouble(const Message& message);
  // "rank 1, rank 3": whose tickets have not come.
  std::string missing() const;

  bool crowded_;
  Peers peers_;
  GrowingMemory memory_[2], tickets_;  // two in turns: what a collective left stays while the next part is written
  int turn_ = 0;
  std::byte* part_ = nullptr;
  std::byte* blocks_ = nullptr;  // of the last gather, with tickets `block_bytes_` apart
  int64_t block_bytes_ = 0;
  uint64_t round_ = 0;
  int64_t looks_after_end_ = 0;
};

}  // namespace torch_cpullm::comm
