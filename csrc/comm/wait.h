// Waiting for other ranks: fast while they are on time, and not for ever when they are not.
#pragma once
#include <chrono>
#include <string>
#include <vector>

#include "comm/group.h"

namespace torch_cpullm::comm {

// Other processes of this host, each with its rank, watched by pidfd.
class Peers {
 public:
  Peers() = default;
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;
  ~Peers();

  // Kernels without pidfd_open (before 5.3): not watched.
  void watch(int rank, int pid);
  bool watches(int rank) const;
  // Whether the process of this rank has ended. It may have done its part before that.
  bool gone(int rank) const;

 private:
  struct Peer {
    int rank, descriptor;  // -1: it was gone before it could be watched
  };
  std::vector<Peer> peers_;
};

// Asks whether Ctrl-C was pressed since, and forgets it. Set by the bindings: Python holds that flag.
using InterruptCheck = bool (*)();
void set_interrupt_check(InterruptCheck check);

// "all_reduce of 4096 bfloat16"
std::string describe(const Message& message);

// The waiting of one collective. Patience is spent on time in which this process ran: when all ranks are stopped and
// continued, nobody is late.
class Wait {
 public:
  // crowded: there are more ranks than CPUs, so the one that is waited for may need this one.
  Wait(const Message& message, std::chrono::milliseconds patience, bool crowded)
      : message_(message), patience_(patience), pauses_(crowded ? kPausesCrowded : kPauses) {}

  // Returns when done(), and throws Failure when that is hopeless: trouble() says why, or nothing ("") while it is not.
  // done() is asked once more behind it, since a rank that did its part may end, and whoever was stopped may be late
  // himself. whom() ends the sentence "waited 5 s for ...", say "rank 1".
  template <class Done, class Trouble, class Whom>
  void until(const Done& done, const Trouble& trouble, const Whom& whom) {
    while (!done()) {
      if (pause()) continue;
      stop_if_interrupted();
      std::string reason = trouble();
      if (reason.empty() && patience_is_over()) reason = too_late(whom());
      if (!reason.empty() && !done()) throw Failure(describe(message_) + ": " + reason);
    }
  }

 private:
  // About 60 us of pauses: longer than another rank's share of a layer differs from ours. After that the CPU may be
  // what the other rank is waiting for.
  static constexpr int64_t kPauses = 2048;
  // 1 us: the time of the two system calls that giving the CPU away costs.
  static constexpr int64_t kPausesCrowded = 32;

  // False when it is time for a look at more than what is waited for.
  bool pause();
  void stop_if_interrupted() const;
  bool patience_is_over();
  std::string too_late(const std::string& whom) const;

  const Message& message_;
  std::chrono::milliseconds patience_;
  int64_t pauses_, turns_ = 0;
  std::chrono::steady_clock::time_point last_look_{};
  std::chrono::steady_clock::duration waited_{};
};

}  // namespace torch_cpullm::comm
