// Groups that a library of others carries: oneCCL, and gloo as torch has it.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "bindings/check.h"
#include "bindings/comm_errors.h"
#include "bindings/ops.h"
#include "comm/ccl_group.h"
#include "comm/routes.h"

namespace torch_cpullm::bindings {
namespace {

// The fallback, and what the others are compared with.
class GlooGroup final : public comm::GatherGroup {
 public:
  GlooGroup(c10::intrusive_ptr<c10d::Backend> backend, const comm::Patience& patience)
      : GatherGroup("gloo", backend->getRank(), backend->getSize(), patience), backend_(std::move(backend)) {}

 protected:
  void begin_gather(std::byte* blocks, int64_t bytes) override {
    at::Tensor all = at::from_blob(blocks, {bytes * size()}, at::kByte);
    at::Tensor mine = all.narrow(0, bytes * rank(), bytes);
    work_ = backend_->_allgather_base(all, mine);
  }

  State test() override {
    if (!work_->isCompleted()) return State::running;
    if (!work_->isSuccess()) return State::failed;
    work_.reset();
    return State::done;
  }

  // gloo ends the process (std::terminate, in a thread of its own) when a rank sends more than another one expects.
  comm::Parts exchange(const comm::Message& message) override {
    check(message);
    return GatherGroup::exchange(message);
  }

  // Destroying them joins threads that may still wait for a rank that is gone.
  void abandon() override {
    GatherGroup::abandon();
    (void)work_.release();
    (void)backend_.release();
  }

  std::string fault() const override {
    try {
      std::rethrow_exception(work_->exception());
    } catch (const std::exception& error) {
      return error.what();
    }
  }

 private:
  c10::intrusive_ptr<c10d::Backend> backend_;
  c10::intrusive_ptr<c10d::Work> work_;
};

comm::Patience patience_of(double timeout_s, at::IntArrayRef pids, bool crowded) {
  return {check_timeout(timeout_s), pids.vec(), crowded};
}

void check_seat(int64_t rank, int64_t size, at::IntArrayRef pids) {
  TORCH_CHECK_VALUE(size >= 1 && size <= comm::kMostRanks, "size: expected 1 to ", comm::kMostRanks, " ranks, got ",
                    size);
  TORCH_CHECK_VALUE(rank >= 0 && rank < size, "rank: expected 0 to ", size - 1, ", got ", rank);
  TORCH_CHECK_VALUE(static_cast<int64_t>(pids.size()) == size, "pids: expected one of each of the ", size,
                    " ranks, got ", pids.size());
}

}  // namespace

at::Tensor ccl_start(const std::string& library) {
  return translated([&] {
    const std::string address = comm::Ccl::open(library).start();
    at::Tensor out = at::empty({static_cast<int64_t>(address.size())}, at::kByte);
    std::memcpy(out.mutable_data_ptr(), address.data(), address.size());
    return out;
  });
}

int64_t open_ccl(const std::string& library, const at::Tensor& address, int64_t rank, at::IntArrayRef pids,
                 double timeout_s, bool crowded) {
  check_type(address, at::kByte, "address");
  TORCH_CHECK_VALUE(address.is_contiguous() && address.numel() == static_cast<int64_t>(ccl::kAddressBytes),
                    "address: expected the ", ccl::kAddressBytes, " bytes of ccl_start, got shape ", address.sizes());
  const auto size = static_cast<int64_t>(pids.size());
  check_seat(rank, size, pids);
  const comm::Patience patience = patience_of(timeout_s, pids, crowded);
  return translated([&] {
    comm::Ccl& ccl = comm::Ccl::open(library);
    const std::string where(static_cast<const char*>(address.const_data_ptr()), ccl::kAddressBytes);
    ccl::Communicator* communicator = ccl.join(where, static_cast<int>(rank), static_cast<int>(size));
    return comm::add(
        std::make_unique<comm::CclGroup>(ccl, communicator, static_cast<int>(rank), static_cast<int>(size), patience));
  });
}

int64_t open_gloo(const std::string& name, at::IntArrayRef pids, double timeout_s, bool crowded) {
  c10::intrusive_ptr<c10d::Backend> backend = c10d::resolve_process_group(name)->getBackend(at::kCPU);
  check_seat(backend->getRank(), backend->getSize(), pids);
  const comm::Patience patience = patience_of(timeout_s, pids, crowded);
  return comm::add(std::make_unique<GlooGroup>(std::move(backend), patience));
}

}  // namespace torch_cpullm::bindings
