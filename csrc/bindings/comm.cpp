// Collectives between ranks, over any transport, and the groups of shared memory.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "bindings/check.h"
#include "bindings/comm_errors.h"
#include "bindings/ops.h"
#include "comm/routes.h"
#include "comm/shm_group.h"

namespace torch_cpullm::bindings {
namespace {

using comm::Message;
using comm::Operation;
using runtime::Team;

// Copying and summing 256 KiB takes some 20 us; opening a parallel region and its barriers about 5.
constexpr int64_t kTeamBytes = int64_t{256} << 10;

template <class Body>
void on_team(int64_t bytes, const Body& body) {
  runtime::parallel(bytes < kTeamBytes ? 1 : at::get_num_threads(), body);
}

void copy_share(const Team& team, std::byte* to, const std::byte* from, int64_t bytes) {
  const runtime::Range mine = team.share(bytes);
  if (mine.begin == mine.end) return;  // a tensor without elements has no pointer
  std::memcpy(to + mine.begin, from + mine.begin, static_cast<size_t>(mine.end - mine.begin));
}

// body(first, count) for as many elements as one part holds, and once where there are none: other ranks may have some.
template <class Body>
void for_pieces(const comm::Group& group, int64_t elements, int64_t element_bytes, const Body& body) {
  const int64_t most = group.most_bytes() / element_bytes;
  int64_t first = 0;
  do {
    const int64_t count = std::min(most, elements - first);
    body(first, count);
    first += count;
  } while (first < elements);
}

void check_contiguous(const at::Tensor& x, const char* name) {
  check_cpu(x, name);
  TORCH_CHECK_VALUE(x.is_contiguous(), name, ": expected a contiguous tensor, got shape ", x.sizes(), " with strides ",
                    x.strides(), "; it is written in place, so call .contiguous() first and use the copy");
}

}  // namespace

void all_reduce_(at::Tensor x, int64_t number) {
  check_float(x, "x");
  check_contiguous(x, "x");
  translated([&] {
    const auto routes = comm::find(number);
    comm::Group& group = routes->of(static_cast<int64_t>(x.nbytes()));
    const layout::Elements values = mutable_elements_of(x);
    for_pieces(group, x.numel(), x.element_size(), [&](int64_t first, int64_t count) {
      const Message message{Operation::all_reduce, comm::type_of(values.type), count};
      const layout::Elements piece = values.from(first);
      std::byte* part = group.part(message.bytes());
      on_team(message.bytes(), [&](const Team& team) {
        copy_share(team, part, static_cast<const std::byte*>(piece.data), message.bytes());
        comm::add_parts(team, message, group.run(team, message), {nullptr, piece.type}, piece);
      });
      group.rethrow();
    });
  });
}

void broadcast_(at::Tensor x, int64_t root, int64_t number) {
  check_contiguous(x, "x");
  translated([&] {
    const auto routes = comm::find(number);
    comm::Group& group = routes->of(static_cast<int64_t>(x.nbytes()));
    TORCH_CHECK_VALUE(root >= 0 && root < group.size(), "root: expected a rank from 0 to ", group.size() - 1, ", got ",
                      root);
    const bool is_root = group.rank() == root;
    auto* bytes = static_cast<std::byte*>(x.mutable_data_ptr());
    for_pieces(group, static_cast<int64_t>(x.nbytes()), 1, [&](int64_t first, int64_t count) {
      const Message message{Operation::broadcast, comm::Type::bytes, count, static_cast<int>(root)};
      std::byte* part = group.part(count);
      on_team(count, [&](const Team& team) {
        if (is_root) copy_share(team, part, bytes + first, count);
        const comm::Parts parts = group.run(team, message);
        if (!is_root && parts.count) copy_share(team, bytes + first, parts.part[0], count);
      });
      group.rethrow();
    });
  });
}

at::Tensor all_gather(const at::Tensor& x, int64_t number) {
  check_cpu(x, "x");
  return translated([&] {
    const auto routes = comm::find(number);
    const at::Tensor mine = x.contiguous();
    comm::Group& group = routes->of(static_cast<int64_t>(mine.nbytes()));
    std::vector<int64_t> shape{group.size()};
    shape.insert(shape.end(), x.sizes().begin(), x.sizes().end());
    at::Tensor out = at::empty(shape, x.options());
    const auto* from = static_cast<const std::byte*>(mine.const_data_ptr());
    auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
    const auto bytes = static_cast<int64_t>(mine.nbytes());
    for_pieces(group, bytes, 1, [&](int64_t first, int64_t count) {
      const Message message{Operation::all_gather, comm::Type::bytes, count};
      std::byte* part = group.part(count);
      on_team(count, [&](const Team& team) {
        copy_share(team, part, from + first, count);
        const comm::Parts parts = group.run(team, message);
        for (int i = 0; i < parts.count; ++i)
          copy_share(team, to + i * bytes + first, parts.part[static_cast<size_t>(i)], count);
      });
      group.rethrow();
    });
    return out;
  });
}

void barrier(int64_t number, std::optional<double> timeout_s) {
  translated([&] {
    const auto routes = comm::find(number);
    comm::Group& group = routes->of(0);
    std::optional<std::chrono::milliseconds> usual;
    if (timeout_s) usual = group.be_patient(check_timeout(*timeout_s));
    group.part(0);
    group.run(Team{0, 1}, {Operation::barrier, comm::Type::bytes, 0});
    if (usual) group.be_patient(*usual);
    group.rethrow();
  });
}

int64_t route_groups(at::IntArrayRef groups, at::IntArrayRef limits) {
  return translated([&] { return comm::add_routes(groups.vec(), limits.vec()); });
}

void close_group(int64_t number) { comm::close(number); }

std::tuple<std::string, int64_t, int64_t, int64_t> group_info(int64_t number) {
  return translated([&] {
    const auto routes = comm::find(number);
    return std::tuple<std::string, int64_t, int64_t, int64_t>(routes->transport(), routes->rank(), routes->size(),
                                                              routes->count());
  });
}

std::tuple<int64_t, int64_t, int64_t, int64_t> shm_create(int64_t size, int64_t part_bytes, double timeout_s) {
  TORCH_CHECK_VALUE(size >= 1 && size <= comm::kMostRanks, "size: expected 1 to ", comm::kMostRanks, " ranks, got ",
                    size);
  TORCH_CHECK_VALUE(part_bytes >= 1 && part_bytes <= int64_t{1} << 36, "part_bytes: expected 1 to 2^36, got ",
                    part_bytes);
  const auto patience = check_timeout(timeout_s);
  return translated([&] {
    auto group =
        std::make_unique<comm::ShmGroup>(comm::ShmSegment::create(static_cast<int>(size), part_bytes), 0, patience);
    const comm::ShmAddress address = group->address();
    return std::tuple<int64_t, int64_t, int64_t, int64_t>(comm::add(std::move(group)), address.pid, address.descriptor,
                                                          address.token);
  });
}

int64_t shm_open(int64_t pid, int64_t descriptor, int64_t token, int64_t rank, double timeout_s) {
  const auto patience = check_timeout(timeout_s);
  return translated([&] {
    comm::ShmSegment segment = comm::ShmSegment::open({pid, descriptor, token});
    TORCH_CHECK_VALUE(rank >= 1 && rank < segment.size(), "rank: expected 1 to ", segment.size() - 1,
                      " (rank 0 has created the group), got ", rank);
    return comm::add(std::make_unique<comm::ShmGroup>(std::move(segment), static_cast<int>(rank), patience));
  });
}

}  // namespace torch_cpullm::bindings
