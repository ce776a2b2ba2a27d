#include "comm/group.h"

#include "kernels/rowwise/rowwise.h"

namespace torch_cpullm::comm {

Parts Group::run(const runtime::Team& team, const Message& message) noexcept {
  const auto guarded = [&](const auto& step) noexcept {
    if (failure_) return;
    try {
      step();
    } catch (...) {
      failure_ = std::current_exception();
      parts_ = {};
    }
  };
  team.barrier();
  if (team.rank == 0) guarded([&] { parts_ = exchange(message); });
  team.barrier();
  if (parts_.sliced) {
    sum_own_slice(team, message);
    team.barrier();
    if (team.rank == 0) guarded([&] { meet(message); });
    team.barrier();
  }
  return parts_;
}

}  // namespace torch_cpullm::comm
