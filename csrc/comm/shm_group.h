// Ranks of one host that meet in shared memory: each writes its part into a slot of its own and reads the others'.
// README.md has the protocol and why two slots are enough.
#pragma once
#include <chrono>
#include <string>

#include "comm/group.h"
#include "comm/shm_segment.h"
#include "comm/wait.h"

namespace torch_cpullm::comm {

class ShmGroup final : public Group {
 public:
  // Takes the rank's seat. patience: what a collective waits for another rank.
  ShmGroup(ShmSegment segment, int rank, std::chrono::milliseconds patience);
  ~ShmGroup() override;

  ShmAddress address() const { return segment_.address(); }
  int64_t most_bytes() const override { return segment_.part_bytes(); }
  std::byte* part(int64_t bytes) override;

 protected:
  Parts exchange(const Message& message) override;
  void meet(const Message& message, Parts& parts) override;

 private:
  // Runs a step; if it throws, the other ranks are told.
  template <class Step>
  void tell_failure(const Step& step);
  template <class Done>
  void wait_for_all(const Message& message, const Done& done);
  std::string trouble_with(int rank);
  // Whether the ranks' processes may use fewer CPUs than there are ranks.
  bool is_crowded() const;

  ShmSegment segment_;
  Peers peers_;
  uint64_t round_ = 0;  // the last one begun
  bool crowded_ = false;
  int64_t touched_[2] = {};  // bytes of our slots that hold memory
};

}  // namespace torch_cpullm::comm
