// Waiting for other ranks: fast while they are on time, and not for ever when they are not.
#pragma once
#include <chrono>
#include <string>
#include <vector>

#include "comm/group.h"

namespace torch_cpullm::comm {

// Other processes of this host that are waited for, each with its rank, watched by pidfd.
class Peers {
 public:
  Peers() = default;
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;
  ~Peers();

  // Throws Failure when the process is gone already. Kernels without pidfd_open (before 5.3): not watched.
  void watch(int rank, int pid);
  // The rank of a process that has ended, or -1.
  int gone() const;

 private:
  struct Peer {
    int rank, descriptor;
  };
  std::vector<Peer> peers_;
};

// Asks whether Ctrl-C was pressed since, and forgets it. Set by the bindings: Python holds that flag.
using InterruptCheck = bool (*)();
void set_interrupt_check(InterruptCheck check);

// "all_reduce of 4096 bfloat16"
std::string describe(const Message& message);

// One wait. `turn` is called between two looks at what is waited for: it pauses, after a while yields the CPU, and in
// the end looks after the peers, Ctrl-C and the time, and throws.
class Wait {
 public:
  Wait(const Peers& peers, std::chrono::milliseconds patience) : peers_(peers), patience_(patience) {}

  // whom() ends the sentence "waited 5 s for ...", say "rank 1"; it is asked only when there is something to say.
  template <class Whom>
  void turn(const Message& message, const Whom& whom) {
    if (!pause()) look_after(message, whom());
  }

 private:
  // False when it is time for a look at more than what is waited for.
  bool pause();
  void look_after(const Message& message, const std::string& whom);

  const Peers& peers_;
  std::chrono::milliseconds patience_;
  std::chrono::steady_clock::time_point begin_{};  // of the first look
  int64_t turns_ = 0;
};

}  // namespace torch_cpullm::comm
