#include "comm/gather_group.h"

#include <new>
#include <utility>

namespace torch_cpullm::comm {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPage = 4096;

// What a rank sent before it ended may still lie in sockets: 8 MB there take some hundred tests. A look comes every 64.
constexpr int64_t kLooksAfterEnd = 1000;

int64_t round_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }
int64_t block_bytes_of(int64_t part_bytes) { return kLine + round_up(part_bytes, kLine); }

}  // namespace

// What a rank asks for, in which of its collectives.
struct GatherGroup::Ticket {
  uint64_t round;
  Message message;
};

std::byte* GrowingMemory::reserve(int64_t bytes) {
  if (bytes <= bytes_) return memory_.get();
  memory_.reset();
  bytes_ = round_up(bytes, kPage);
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, static_cast<size_t>(bytes_))));
  if (!memory_) {
    bytes_ = 0;
    throw std::bad_alloc();
  }
  return memory_.get();
}

GatherGroup::GatherGroup(std::string transport, int rank, int size, const Patience& patience)
    : Group(std::move(transport), rank, size, patience.duration), crowded_(patience.crowded) {
  for (int other = 0; other < size; ++other)
    if (const int64_t pid = patience.pids[static_cast<size_t>(other)]; pid != 0 && other != rank)
      peers_.watch(other, static_cast<int>(pid));
}

void GatherGroup::abandon() {
  memory_[0].abandon();
  memory_[1].abandon();
  tickets_.abandon();
}

std::byte* GatherGroup::part(int64_t bytes) {
  if (bytes > most_bytes())
    throw Failure("a part of " + std::to_string(bytes) + " bytes: expected at most " + std::to_string(most_bytes()));
  turn_ ^= 1;
  const int64_t block_bytes = block_bytes_of(bytes);
  part_ = memory_[turn_].reserve(block_bytes * size()) + block_bytes * rank() + kLine;
  return part_;
}

GatherGroup::Ticket& GatherGroup::ticket(int rank) const {
  return *reinterpret_cast<Ticket*>(blocks_ + block_bytes_ * rank);
}

Parts GatherGroup::exchange(const Message& message) {
  const int64_t block_bytes = block_bytes_of(message.bytes());
  std::byte* blocks = part_ - kLine - block_bytes * rank();
  gather(blocks, block_bytes, message);
  Parts parts;
  const bool broadcast = message.operation == Operation::broadcast;
  parts.count = broadcast ? 1 : size();
  for (int i = 0; i < parts.count; ++i)
    parts.part[static_cast<size_t>(i)] = blocks + block_bytes * (broadcast ? message.root : i) + kLine;
  return parts;
}

void GatherGroup::check(const Message& message) { gather(tickets_.reserve(kLine * size()), kLine, message); }

void GatherGroup::gather(std::byte* blocks, int64_t block_bytes, const Message& message) {
  blocks_ = blocks;
  block_bytes_ = block_bytes;
  ++round_;
  for (int other = 0; other < size(); ++other) ticket(other).round = 0;  // not come yet
  ticket(rank()) = {round_, message};
  complete(message, [&] { begin_gather(blocks, block_bytes); });
  for (int other = 0; other < size(); ++other)
    if (ticket(other).round != round_)
      throw Failure(describe(message) + ": rank " + std::to_string(other) + " is in another collective than rank " +
                    std::to_string(rank()) + "; make the same calls on all ranks");
  compare(message);
}

void GatherGroup::compare(const Message& message) const {
  for (int other = 0; other < size(); ++other) {
    const Ticket& theirs = ticket(other);
    if (theirs.round == round_ && theirs.message != message)
      throw Failure(describe(message) + ": rank " + std::to_string(other) + " asked for another shape, " +
                    describe(theirs.message) + "; call with the same on all ranks");
  }
}

void GatherGroup::wait(const Message& message) {
  State state = State::running;
  Wait(message, patience_, crowded_)
      .until([&] { return (state = test()) != State::running; }, [&] { return trouble(message); },
             [&] {
               compare(message);
               return missing();
             });
  if (state != State::failed) return;
  compare(message);
  throw Failure(describe(message) + ": no answer from " + missing() +
                "; has it ended, lost the network, or asked for another shape? (" + transport() + ": " + fault() + ")");
}

std::string GatherGroup::trouble(const Message& message) {
  for (int other = 0; other < size(); ++other) {
    if (!peers_.gone(other) || ++looks_after_end_ <= kLooksAfterEnd) continue;
    compare(message);
    return "rank " + std::to_string(other) + " has ended";
  }
  return {};
}

std::string GatherGroup::missing() const {
  std::string ranks;
  for (int other = 0; other < size(); ++other)
    if (ticket(other).round != round_) ranks += (ranks.empty() ? "rank " : ", rank ") + std::to_string(other);
  return ranks.empty() ? "another rank" : ranks;
}

}  // namespace torch_cpullm::comm
