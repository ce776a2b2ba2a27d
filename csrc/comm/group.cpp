#include "comm/group.h"

#include "kernels/rowwise/rowwise.h"

namespace torch_cpullm::comm {
namespace {

using runtime::Range;

layout::Element element_of(Type type) {
  return type == Type::bf16 ? layout::Element::bf16 : type == Type::f16 ? layout::Element::f16 : layout::Element::f32;
}

// A member's share of a range.
Range share_within(Range range, const runtime::Team& team) {
  const Range mine = team.share(range.end - range.begin);
  return {range.begin + mine.begin, range.begin + mine.end};
}

}  // namespace

std::byte* Group::begin(int64_t bytes) noexcept {
  std::byte* own = nullptr;
  guarded([&] { own = part(bytes); });
  return own;
}

Parts Group::run(const runtime::Team& team, const Message& message) noexcept {
  team.barrier();
  if (team.rank == 0) {
    ++count_;
    guarded([&] { parts_ = exchange(message); });
  }
  team.barrier();
  if (parts_.sliced) {
    sum_own_slice(team, message);
    team.barrier();
    if (team.rank == 0) guarded([&] { meet(message, parts_); });
    team.barrier();
  }
  return parts_;
}

void Group::sum_own_slice(const runtime::Team& team, const Message& message) const {
  const Range mine = share_within(runtime::share_of(message.elements, rank_, size_), team);
  const layout::Element type = element_of(message.type);
  // Into our own part, which others read only outside of this slice until `meet`.
  std::byte* own = const_cast<std::byte*>(parts_.part[static_cast<size_t>(rank_)]);
  kernels::rowwise_kernels().sum(parts_.part.data(), parts_.count, type, {nullptr, type}, mine.begin, mine.end,
                                 {own, type});
}

void add_parts(const runtime::Team& team, const Message& message, const Parts& parts, layout::ConstElements residual,
               layout::Elements out) {
  if (parts.count == 0) return;
  const auto sum = kernels::rowwise_kernels().sum;
  const layout::Element type = element_of(message.type);
  if (!parts.sliced) {
    const Range mine = team.share(message.elements);
    return sum(parts.part.data(), parts.count, type, residual, mine.begin, mine.end, out);
  }
  for (int slice = 0; slice < parts.count; ++slice) {
    const Range mine = share_within(runtime::share_of(message.elements, slice, parts.count), team);
    sum(&parts.part[static_cast<size_t>(slice)], 1, type, residual, mine.begin, mine.end, out);
  }
}

}  // namespace torch_cpullm::comm
