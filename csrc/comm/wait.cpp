#include "comm/wait.h"

#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

namespace torch_cpullm::comm {
namespace {

// A look at peers, clock and signals is a few system calls: 1 us, every 64 turns of sched_yield (0.2 us and more each).
constexpr int64_t kYieldsBetweenLooks = 64;
// What two looks count for at most. On CPUs that many share, 64 yields can take some tenths of a second; whoever was
// away for longer was stopped.
constexpr std::chrono::seconds kMostBetweenLooks{1};

// Whoever lets others wait as long as this is busy with something else, maybe on this CPU.
constexpr std::chrono::milliseconds kLong{200};
constexpr std::chrono::microseconds kSleep{500};

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

std::string as_seconds(std::chrono::milliseconds duration) {
  std::string text = std::to_string(static_cast<double>(duration.count()) / 1000.0);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

}  // namespace

std::string describe(const Message& message) {
  static constexpr const char* kTypes[] = {"float32", "bfloat16", "float16", "bytes"};
  std::string text = name_of(message.operation);
  if (message.operation == Operation::barrier) return text;
  text += " of " + std::to_string(message.elements) + " " + kTypes[static_cast<int>(message.type)];
  if (message.operation == Operation::broadcast) text += " from rank " + std::to_string(message.root);
  return text;
}

Peers::~Peers() {
  for (const Peer& peer : peers_)
    if (peer.descriptor >= 0) close(peer.descriptor);
}

void Peers::watch(int rank, int pid) {
  const int descriptor = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (descriptor >= 0 || errno == ESRCH) peers_.push_back({rank, descriptor});
}

bool Peers::watches(int rank) const {
  return std::any_of(peers_.begin(), peers_.end(), [&](const Peer& peer) { return peer.rank == rank; });
}

bool Peers::gone(int rank) const {
  return std::any_of(peers_.begin(), peers_.end(), [&](const Peer& peer) {
    if (peer.rank != rank) return false;
    pollfd state{peer.descriptor, POLLIN, 0};
    return peer.descriptor < 0 || poll(&state, 1, 0) == 1;
  });
}

void set_interrupt_check(InterruptCheck check) { interrupt_check = check; }

bool Wait::pause() {
  if (++turns_ <= pauses_) {
    __builtin_ia32_pause();
    return true;
  }
  if (waited_ > kLong) {
    std::this_thread::sleep_for(kSleep);
    return false;
  }
  sched_yield();
  return turns_ % kYieldsBetweenLooks != 0;
}

void Wait::stop_if_interrupted() const {
  const InterruptCheck check = interrupt_check;
  if (check && check()) throw Interrupted(describe(message_) + ": interrupted");
}

bool Wait::patience_is_over() {
  const auto now = std::chrono::steady_clock::now();
  if (last_look_ != decltype(last_look_){})
    waited_ += std::min<std::chrono::steady_clock::duration>(now - last_look_, kMostBetweenLooks);
  last_look_ = now;
  return waited_ > patience_;
}

std::string Wait::too_late(const std::string& whom) const {
  return "waited " + as_seconds(patience_) + " for " + whom +
         "; is it stopped, or doing something else? TORCH_CPULLM_COMM_TIMEOUT sets how long";
}

}  // namespace torch_cpullm::comm
