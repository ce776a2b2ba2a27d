// Ranks on any hosts, through oneCCL over the network. _C.so is neither compiled nor linked with it: _ccl.so is opened
// when the first group is.
#pragma once
#include <atomic>
#include <string>

#include "ccl/interface.h"
#include "comm/gather_group.h"

namespace torch_cpullm::comm {

class Ccl {
 public:
  // Opens the library at `path`, once in a process.
  static Ccl& open(const std::string& path);

  // Where the other ranks find this one: ccl::kAddressBytes bytes.
  std::string start() const;
  // Blocks until all ranks have come. All three throw Failure.
  ccl::Communicator* join(const std::string& address, int rank, int size) const;

  // A collective that was begun and never done spoils all later ones, those of other groups as well (measured: wrong
  // completions). No group begins one after it.
  void spoil() { spoilt_ = true; }
  void check_unspoilt() const;

  const ccl::Functions& functions() const { return *functions_; }

 private:
  explicit Ccl(const ccl::Functions* functions) : functions_(functions) {}
  const ccl::Functions* functions_;
  std::atomic<bool> spoilt_{false};
};

class CclGroup final : public GatherGroup {
 public:
  CclGroup(Ccl& library, ccl::Communicator* communicator, int rank, int size, const Patience& patience);

 protected:
  void begin_gather(std::byte* blocks, int64_t bytes) override;
  State test() override;
  std::string fault() const override;
  void abandon() override;

  // Long messages are summed in slices:
  //
  //   own part  | slice 0 | slice 1 | slice 2 |      slice i goes to rank i        exchange
  //   slices    | of rank 0 | of rank 1 | ...        what came for this rank
  //   own part  | sum 0   | sum 1   | sum 2   |      every rank's sums             meet
  Parts exchange(const Message& message) override;
  void meet(const Message& message, Parts& parts) override;

 private:
  void begun(ccl::Request* request);

  Ccl& library_;
  const ccl::Functions& ccl_;
  ccl::Communicator* communicator_;  // never destroyed: that waits for ranks that may be gone
  ccl::Request* request_ = nullptr;
  GrowingMemory slices_;
};

}  // namespace torch_cpullm::comm
