// The memory that the ranks of one host share: a file without a name, made by rank 0 and mapped by all. It has no entry
// in /dev/shm, its size is bounded by no container's limit on that, and the kernel frees it with the last process.
//
//   Header                       what it is, and the first failure
//   Seat of rank 0 | rank 1 ...  arrivals; who sits there
//   slots, page by page          rank 0's part of even rounds | of odd ones | rank 1's ... | ...     sparse
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/group.h"

namespace torch_cpullm::comm {

// What another rank needs to find the segment: descriptor of the process `pid`, and the token its header repeats.
struct ShmAddress {
  int64_t pid, descriptor, token;
};

// A rank's word that its part of a round is written, on a cache line of its own: nobody else writes there, and whoever
// polls it has the message with the same transfer.
struct alignas(64) Arrival {
  std::atomic<uint64_t> round;
  Message message;
};

struct Seat {
  Arrival arrival[2];                        // of even and odd rounds
  alignas(64) std::atomic<uint64_t> summed;  // the last round whose slice is summed
  alignas(64) std::atomic<int32_t> pid;      // 0: nobody yet
  std::atomic<bool> left;
};

class ShmSegment {
 public:
  // part_bytes: capacity of one part; memory is taken as it is written. Throws Failure, as `open` does.
  static ShmSegment create(int size, int64_t part_bytes);
  // Maps what the process at `address` has made; says in words why that is impossible (another user, another PID
  // namespace, hidden /proc).
  static ShmSegment open(const ShmAddress& address);

  ShmSegment(ShmSegment&& other) noexcept;
  ShmSegment(const ShmSegment&) = delete;
  ShmSegment& operator=(const ShmSegment&) = delete;
  ~ShmSegment();

  ShmAddress address() const;
  int size() const { return size_; }
  int64_t part_bytes() const { return part_bytes_; }

  // Takes the seat; throws Failure when somebody sits there.
  void sit_down(int rank);
  Seat& seat(int rank) const;
  // Where `rank` writes its part of a round: aligned to pages.
  std::byte* slot(int rank, uint64_t round) const;

  // The first failure of any rank is kept for all to read.
  void fail(int rank, const std::string& text) const;
  bool failed() const;
  std::string failure() const;  // "rank 1 failed in <text>"; empty: none

 private:
  struct Header;
  ShmSegment(int descriptor, int size, int64_t part_bytes);
  Header& header() const { return *reinterpret_cast<Header*>(memory_); }

  int size_;
  int64_t part_bytes_;
  int descriptor_;  // -1 but where it was made: there the others find it
  std::byte* memory_ = nullptr;
};

}  // namespace torch_cpullm::comm
