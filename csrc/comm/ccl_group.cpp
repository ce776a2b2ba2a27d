#include "comm/ccl_group.h"

#include <dlfcn.h>

#include <utility>

namespace torch_cpullm::comm {
namespace {

using runtime::Range;

// A gather of whole parts brings a rank (size - 1) parts; slices bring 2 (size - 1) / size, but take three rounds
// instead of one. Both take as long where the gather brings 384 KiB more: 256 KiB at 4 ranks (236 against 541 us at
// 64 KiB, 830 and 840 at 256 KiB, 6370 against 3890 at 1 MiB; TCP on one host, 2 cores). Two ranks never gain.
constexpr int64_t kMoreBytes = int64_t{384} << 10;

bool is_sliced(const Message& message, int64_t size) {
  return message.operation == Operation::all_reduce && message.bytes() * (size - 1) * (size - 2) > kMoreBytes * size;
}

Range slice_bytes(const Message& message, int slice, int size) {
  const Range elements = runtime::share_of(message.elements, slice, size);
  return {elements.begin * bytes_of(message.type), elements.end * bytes_of(message.type)};
}

size_t length(Range range) { return static_cast<size_t>(range.end - range.begin); }

}  // namespace

Ccl& Ccl::open(const std::string& path) {
  static Ccl it([&] {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw Failure(std::string("oneCCL: ") + dlerror());
    const auto entry = reinterpret_cast<ccl::Entry>(dlsym(library, ccl::kEntry));
    if (!entry) throw Failure(std::string("oneCCL: ") + dlerror());
    return entry();
  }());
  return it;
}

void Ccl::check_unspoilt() const {
  if (spoilt_)
    throw Failure(
        "oneCCL: a collective of this process has failed before, and oneCCL cannot go on after that; start the "
        "ranks again");
}

std::string Ccl::start() const {
  check_unspoilt();
  std::string address(ccl::kAddressBytes, '\0');
  if (functions_->start(address.data()) == ccl::State::failed) throw Failure(functions_->error());
  return address;
}

ccl::Communicator* Ccl::join(const std::string& address, int rank, int size) const {
  check_unspoilt();
  ccl::Communicator* communicator = functions_->join(address.data(), rank, size);
  if (!communicator) throw Failure(functions_->error());
  return communicator;
}

CclGroup::CclGroup(Ccl& library, ccl::Communicator* communicator, int rank, int size, const Patience& patience)
    : GatherGroup("ccl", rank, size, patience),
      library_(library),
      ccl_(library.functions()),
      communicator_(communicator) {}

void CclGroup::abandon() {
  GatherGroup::abandon();
  slices_.abandon();
  library_.spoil();
}

void CclGroup::begun(ccl::Request* request) {
  if (!request) throw Failure(ccl_.error());
  request_ = request;
}

void CclGroup::begin_gather(std::byte* blocks, int64_t bytes) {
  library_.check_unspoilt();
  const std::vector<size_t> all(static_cast<size_t>(size()), static_cast<size_t>(bytes));
  begun(ccl_.all_gather(communicator_, blocks + bytes * rank(), blocks, all.data()));
}

GatherGroup::State CclGroup::test() {
  const ccl::State state = ccl_.test(request_);
  if (state == ccl::State::running) return State::running;
  if (state == ccl::State::failed) return State::failed;
  ccl_.release(std::exchange(request_, nullptr));
  return State::done;
}

std::string CclGroup::fault() const { return ccl_.error(); }

Parts CclGroup::exchange(const Message& message) {
  if (!is_sliced(message, size())) return GatherGroup::exchange(message);
  check(message);
  const Range mine = slice_bytes(message, rank(), size());
  std::vector<size_t> sent, received(static_cast<size_t>(size()), length(mine));
  for (int slice = 0; slice < size(); ++slice) sent.push_back(length(slice_bytes(message, slice, size())));
  // Of each rank's part only our slice is here: `first` is where the part of rank 0 would begin.
  std::byte* first = slices_.reserve(mine.begin + static_cast<int64_t>(length(mine)) * size());
  complete(message, [&] {
    begun(ccl_.all_to_all(communicator_, own_part(), sent.data(), first + mine.begin, received.data()));
  });
  Parts parts;
  parts.count = size();
  parts.sliced = true;
  for (int other = 0; other < size(); ++other)
    parts.part[static_cast<size_t>(other)] = first + static_cast<int64_t>(length(mine)) * other;
  parts.part[static_cast<size_t>(rank())] = own_part();
  return parts;
}

void CclGroup::meet(const Message& message, Parts& parts) {
  std::vector<size_t> slices;
  for (int slice = 0; slice < size(); ++slice) slices.push_back(length(slice_bytes(message, slice, size())));
  const int64_t begin = slice_bytes(message, rank(), size()).begin;
  complete(message, [&] { begun(ccl_.all_gather(communicator_, own_part() + begin, own_part(), slices.data())); });
  parts.part.fill(own_part());
}

}  // namespace torch_cpullm::comm
