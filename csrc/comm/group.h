// Ranks of one model that compute together, and what they do together. One interface for every way of transport.
//
// A collective has two halves, so that no byte is copied on its way: each rank writes its part of a message where the
// transport wants it (`part`), and then reads what came of it where the transport left it (`Parts`).
//
//   projection -> part()            run()                      each member: out = residual + sum of parts
//                 [rank 0][rank 1]  every rank's is written
//
// A small message takes one wait: every rank sums all parts by itself. In a larger one, among many ranks, each rank
// sums a slice of them, and a second wait later all read the slices. Parts are summed in the order of ranks, in float:
// the same bits on all of them.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "layout/element.h"
#include "runtime/parallel.h"

namespace torch_cpullm::comm {

constexpr int kMostRanks = 64;

enum class Operation : int32_t { all_reduce, all_gather, broadcast, barrier };
enum class Type : int32_t { f32, bf16, f16, bytes };

constexpr int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::bytes ? 1 : 2; }

constexpr Type type_of(layout::Element type) {
  return type == layout::Element::bf16 ? Type::bf16 : type == layout::Element::f16 ? Type::f16 : Type::f32;
}

// What all ranks must agree on.
struct Message {
  Operation operation;
  Type type;  // bytes for all but all_reduce
  int64_t elements;
  int root = 0;  // of a broadcast

  int64_t bytes() const { return elements * bytes_of(type); }
  bool operator==(const Message&) const = default;
};

// A rank that is gone, late, or wants something else. Names rank and operation.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Ctrl-C while waiting.
struct Interrupted : Failure {
  using Failure::Failure;
};

// What a collective leaves to be read, until this rank's next `run`: the next part may be written meanwhile.
struct Parts {
  std::array<const std::byte*, kMostRanks> part;
  int count = 0;  // 0: it failed

  // Whether part i holds the finished sum of slice i and nothing else, slice i being share_of(elements, i, count);
  // else the sum of all parts is the result.
  bool sliced = false;
};

class Group {
 public:
  // patience: what a collective waits for another rank.
  Group(std::string transport, int rank, int size, std::chrono::milliseconds patience)
      : patience_(patience), transport_(std::move(transport)), rank_(rank), size_(size) {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  virtual ~Group() = default;

  const std::string& transport() const { return transport_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  // Collectives so far.
  int64_t count() const { return count_; }
  // For the collectives that follow; returns what it was.
  std::chrono::milliseconds be_patient(std::chrono::milliseconds patience) {
    return std::exchange(patience_, patience);
  }

  // Of one part. A longer message is the caller's to cut.
  virtual int64_t most_bytes() const = 0;

  // Where this rank's part of its next collective goes: aligned to 64 bytes. Called once for each collective, by one
  // thread. The contents are undefined.
  virtual std::byte* part(int64_t bytes) = 0;
  // The same inside of a parallel region, which exceptions cannot leave: null after a failure.
  std::byte* begin(int64_t bytes) noexcept;

  // The collective itself, called by all members of a team once each has written its share of the part. All are given
  // the same answer; count is 0 after a failure, of which `rethrow` tells. Nothing works after a failure.
  //
  //   all_reduce        parts to be summed
  //   all_gather        part i is rank i's
  //   broadcast         part 0 is the root's, which alone need write one
  Parts run(const runtime::Team& team, const Message& message) noexcept;

  // Throws what went wrong, if anything did: outside of parallel regions, which exceptions cannot leave.
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 protected:
  // Makes the parts of all ranks readable, or sums them; throws Failure. Called by one member, when the part is
  // written. `sliced` in the answer asks for the second phase: each rank sums its slice into its own part, and `meet`
  // follows.
  virtual Parts exchange(const Message& message) = 0;
  // Returns when all ranks have come this far. The finished slices are where `parts` has them, or is made to.
  virtual void meet(const Message& message, Parts& parts) = 0;
  // Sums every part over this rank's slice into its own part; shared out over the team.
  void sum_own_slice(const runtime::Team& team, const Message& message) const;

  std::chrono::milliseconds patience_;

 private:
  // Runs a step, unless one has failed before; keeps what it throws.
  template <class Step>
  void guarded(const Step& step) noexcept {
    if (failure_) return;
    try {
      step();
    } catch (...) {
      failure_ = std::current_exception();
      parts_ = {};
    }
  }

  std::string transport_;
  int rank_, size_;
  int64_t count_ = 0;
  Parts parts_;
  std::exception_ptr failure_;
};

// out = residual + what an all_reduce left (null data: no residual, which is of out's type): each member its share of
// the elements, in float, rounded once. Nothing is written after a failure.
void add_parts(const runtime::Team& team, const Message& message, const Parts& parts, layout::ConstElements residual,
               layout::Elements out);

}  // namespace torch_cpullm::comm
