#include "comm/shm_group.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace torch_cpullm::comm {
namespace {

// Slots keep this much memory, and give what is above it back when something small follows: a prompt of 512 tokens of
// 8192 floats is 16 MiB.
constexpr int64_t kKeptBytes = int64_t{16} << 20;

// Up to here every rank sums everything, above it a slice. A slice reads 2 (n - 1) / n parts from the other n - 1 ranks
// instead of n - 1 parts, for a second wait: nothing gained at two ranks, measured from 64 KiB to 16 MiB, and at four
// (on two cores) level at 256 KiB, and a quarter less time from 512 KiB on.
constexpr int64_t kOneShotBytes = int64_t{256} << 10;

}  // namespace

ShmGroup::ShmGroup(ShmSegment segment, int rank, std::chrono::milliseconds patience)
    : Group("shm", rank, segment.size(), patience), segment_(std::move(segment)) {
  segment_.sit_down(rank);
}

ShmGroup::~ShmGroup() { segment_.seat(rank()).left.store(true, std::memory_order_release); }

std::byte* ShmGroup::part(int64_t bytes) {
  if (bytes > most_bytes())
    throw Failure("a part of " + std::to_string(bytes) + " bytes: expected at most " + std::to_string(most_bytes()));
  const uint64_t round = round_ + 1;
  std::byte* slot = segment_.slot(rank(), round);
  int64_t& touched = touched_[round & 1];
  if (touched > kKeptBytes && bytes <= kKeptBytes) {
    madvise(slot + kKeptBytes, static_cast<size_t>(most_bytes() - kKeptBytes), MADV_REMOVE);
    touched = kKeptBytes;
  }
  touched = std::max(touched, bytes);
  return slot;
}

template <class Step>
void ShmGroup::tell_failure(const Step& step) {
  try {
    step();
  } catch (const Failure& failure) {
    segment_.fail(rank(), failure.what());
    throw;
  }
}

template <class Done>
void ShmGroup::wait_for_all(const Message& message, const Done& done) {
  Wait wait(message, patience_, crowded_);
  for (int other = 0; other < size(); ++other)
    if (other != rank())
      wait.until([&] { return done(segment_.seat(other)); }, [&] { return trouble_with(other); },
                 [&] { return "rank " + std::to_string(other); });
}

std::string ShmGroup::trouble_with(int other) {
  if (segment_.failed()) return segment_.failure();
  const Seat& seat = segment_.seat(other);
  const int pid = seat.pid.load(std::memory_order_relaxed);
  if (pid != 0 && !peers_.watches(other)) peers_.watch(other, pid);
  if (seat.left.load(std::memory_order_acquire)) return "rank " + std::to_string(other) + " has closed its group";
  if (peers_.gone(other)) return "rank " + std::to_string(other) + " has ended";
  return {};
}

bool ShmGroup::is_crowded() const {
  cpu_set_t all;
  CPU_ZERO(&all);
  for (int other = 0; other < size(); ++other) {
    cpu_set_t its;
    if (sched_getaffinity(segment_.seat(other).pid.load(std::memory_order_relaxed), sizeof its, &its) == 0)
      CPU_OR(&all, &all, &its);
  }
  return CPU_COUNT(&all) < size();
}

Parts ShmGroup::exchange(const Message& message) {
  if (segment_.failed()) throw Failure(describe(message) + ": " + segment_.failure());
  const uint64_t round = ++round_, parity = round & 1;
  Arrival& mine = segment_.seat(rank()).arrival[parity];
  mine.message = message;
  mine.round.store(round, std::memory_order_release);
  Parts parts;
  tell_failure([&] {
    wait_for_all(message,
                 [&](const Seat& seat) { return seat.arrival[parity].round.load(std::memory_order_acquire) >= round; });
    for (int other = 0; other < size(); ++other) {
      const Message& theirs = segment_.seat(other).arrival[parity].message;
      if (theirs != message)
        throw Failure(describe(message) + ": rank " + std::to_string(other) + " asked for another shape, " +
                      describe(theirs) + "; call with the same on all ranks");
    }
  });
  if (round == 1) crowded_ = is_crowded();
  const bool broadcast = message.operation == Operation::broadcast;
  parts.count = broadcast ? 1 : size();
  for (int i = 0; i < parts.count; ++i)
    parts.part[static_cast<size_t>(i)] = segment_.slot(broadcast ? message.root : i, round);
  parts.sliced = message.operation == Operation::all_reduce && size() > 2 && message.bytes() > kOneShotBytes;
  return parts;
}

void ShmGroup::meet(const Message& message, Parts&) {
  segment_.seat(rank()).summed.store(round_, std::memory_order_release);
  tell_failure([&] {
    wait_for_all(message, [&](const Seat& seat) { return seat.summed.load(std::memory_order_acquire) >= round_; });
  });
}

}  // namespace torch_cpullm::comm
