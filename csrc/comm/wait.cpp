#include "comm/wait.h"

#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace torch_cpullm::comm {
namespace {

// About 60 us of pauses: longer than another rank's share of a layer differs from ours. After that the CPU may be what
// the other rank is waiting for.
constexpr int64_t kPauses = 2048;
// A look at peers, clock and signals is two system calls: 1 us, every 64 turns of sched_yield (0.2 us and more each).
constexpr int64_t kYieldsBetweenLooks = 64;

std::atomic<InterruptCheck> interrupt_check{nullptr};

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::all_reduce:
      return "all_reduce";
    case Operation::all_gather:
      return "all_gather";
    case Operation::broadcast:
      return "broadcast";
    case Operation::barrier:
      return "barrier";
  }
  return "collective";
}

}  // namespace

std::string describe(const Message& message) {
  static constexpr const char* kTypes[] = {"float32", "bfloat16", "float16", "bytes"};
  return std::string(name_of(message.operation)) + " of " + std::to_string(message.elements) + " " +
         kTypes[static_cast<int>(message.type)];
}

Peers::~Peers() {
  for (const Peer& peer : peers_) close(peer.descriptor);
}

void Peers::watch(int rank, int pid) {
  const int descriptor = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (descriptor >= 0) return peers_.push_back({rank, descriptor});
  if (errno == ESRCH)
    throw Failure("rank " + std::to_string(rank) + " (process " + std::to_string(pid) + ") has ended");
}

int Peers::gone() const {
  for (const Peer& peer : peers_) {
    pollfd state{peer.descriptor, POLLIN, 0};
    if (poll(&state, 1, 0) == 1) return peer.rank;
  }
  return -1;
}

void set_interrupt_check(InterruptCheck check) { interrupt_check = check; }

bool Wait::pause() {
  if (++turns_ <= kPauses) {
    __builtin_ia32_pause();
    return true;
  }
  sched_yield();
  return turns_ % kYieldsBetweenLooks != 0;
}

void Wait::look_after(const Message& message, const std::string& whom) {
  const auto now = std::chrono::steady_clock::now();
  if (begin_ == decltype(begin_){}) begin_ = now;
  if (const int rank = peers_.gone(); rank >= 0)
    throw Failure("rank " + std::to_string(rank) + " has ended; the others were in " + describe(message));
  const InterruptCheck check = interrupt_check;
  if (check && check()) throw Interrupted("interrupted in " + describe(message));
  if (now - begin_ > patience_)
    throw Failure(describe(message) + ": waited " + std::to_string(patience_.count() / 1000.0).substr(0, 5) +
                  " s for " + whom +
                  "; is it stopped, or doing something else? TORCH_CPULLM_COMM_TIMEOUT sets how long");
}

}  // namespace torch_cpullm::comm
