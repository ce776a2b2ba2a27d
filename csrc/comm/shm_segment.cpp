#include "comm/shm_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace torch_cpullm::comm {
namespace {

constexpr uint64_t kMagic = 0x6d6d6f636d6c6c63;  // "cllmcomm"
constexpr uint32_t kVersion = 1;                 // of the layout in shm_segment.h
constexpr int64_t kPage = 4096;
constexpr int64_t kMostPartBytes = int64_t{1} << 36;  // 64 ranks of two slots stay below half of a 47-bit address space
constexpr int64_t kTextBytes = 256;
// After these nobody who holds the file can take pages away from under the others.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr unsigned kNoExecSeal = 8;  // MFD_NOEXEC_SEAL; kernels before 6.3 and their headers do not know it

constexpr int kNobody = 0, kBeingWritten = -1;  // else the failed rank + 1

int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

std::string reason_of_errno() { return std::strerror(errno); }

struct Descriptor {
  int number;
  explicit Descriptor(int n) : number(n) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
  int release() { return std::exchange(number, -1); }
};

int make_file() {
  constexpr const char* kName = "torch_cpullm";  // for /proc/<pid>/maps only
  const int made = memfd_create(kName, MFD_CLOEXEC | MFD_ALLOW_SEALING | kNoExecSeal);
  return made >= 0 || errno != EINVAL ? made : memfd_create(kName, MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

}  // namespace

struct ShmSegment::Header {
  uint64_t magic;
  uint32_t version;
  int32_t size;
  int64_t token, part_bytes;
  alignas(64) std::atomic<int32_t> failed;
  char text[kTextBytes];
};

namespace {

int64_t seats_at() { return 512; }
int64_t slots_at(int size) { return whole_pages(seats_at() + size * static_cast<int64_t>(sizeof(Seat))); }
int64_t total_bytes(int size, int64_t part_bytes) { return slots_at(size) + 2 * size * part_bytes; }

}  // namespace

ShmSegment::ShmSegment(int descriptor, int size, int64_t part_bytes)
    : size_(size), part_bytes_(part_bytes), descriptor_(-1) {
  static_assert(sizeof(Header) <= 512 && std::atomic<uint64_t>::is_always_lock_free);
  void* memory = mmap(nullptr, static_cast<size_t>(total_bytes(size, part_bytes)), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_NORESERVE, descriptor, 0);
  if (memory == MAP_FAILED) throw Failure("shared memory: cannot map " + reason_of_errno());
  memory_ = static_cast<std::byte*>(memory);
}

ShmSegment::ShmSegment(ShmSegment&& other) noexcept
    : size_(other.size_),
      part_bytes_(other.part_bytes_),
      descriptor_(std::exchange(other.descriptor_, -1)),
      memory_(std::exchange(other.memory_, nullptr)) {}

ShmSegment::~ShmSegment() {
  if (memory_) munmap(memory_, static_cast<size_t>(total_bytes(size_, part_bytes_)));
  if (descriptor_ >= 0) close(descriptor_);
}

ShmSegment ShmSegment::create(int size, int64_t part_bytes) {
  const int64_t bytes = whole_pages(part_bytes);
  Descriptor file(make_file());
  int64_t token = 0;
  if (file.number < 0 || ftruncate(file.number, total_bytes(size, bytes)) != 0 ||
      fcntl(file.number, F_ADD_SEALS, kSeals) != 0 || getrandom(&token, sizeof token, 0) != sizeof token)
    throw Failure("shared memory: cannot make it (" + reason_of_errno() + ")");
  ShmSegment made(file.number, size, bytes);
  Header& header = made.header();
  header.version = kVersion;
  header.size = size;
  header.token = token & INT64_MAX;
  header.part_bytes = bytes;
  header.magic = kMagic;
  made.descriptor_ = file.release();
  return made;
}

ShmSegment ShmSegment::open(const ShmAddress& address) {
  const std::string path = "/proc/" + std::to_string(address.pid) + "/fd/" + std::to_string(address.descriptor);
  const Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (file.number < 0)
    throw Failure("shared memory: cannot open " + path + " of rank 0 (" + reason_of_errno() +
                  "); ranks of one host need one user, one PID namespace and a readable /proc; "
                  "TORCH_CPULLM_COMM=gloo does without");
  Header found;
  struct stat state;
  const bool is_ours = pread(file.number, static_cast<void*>(&found), sizeof found, 0) == sizeof found &&
                       fstat(file.number, &state) == 0 && found.magic == kMagic && found.token == address.token &&
                       (fcntl(file.number, F_GET_SEALS) & kSeals) == kSeals;
  if (!is_ours) throw Failure("shared memory: " + path + " is not what rank 0 made; is it in another PID namespace?");
  if (found.version != kVersion)
    throw Failure("shared memory: rank 0 lays it out by version " + std::to_string(found.version) +
                  ", this process by version " + std::to_string(kVersion) + "; run one torch_cpullm on all ranks");
  if (found.size < 1 || found.size > kMostRanks || found.part_bytes < kPage || found.part_bytes > kMostPartBytes ||
      state.st_size != total_bytes(found.size, found.part_bytes))
    throw Failure("shared memory: the header of " + path + " contradicts its size");
  return {file.number, found.size, found.part_bytes};
}

ShmAddress ShmSegment::address() const { return {getpid(), descriptor_, header().token}; }

void ShmSegment::sit_down(int rank) {
  int32_t nobody = 0;
  if (!seat(rank).pid.compare_exchange_strong(nobody, getpid()))
    throw Failure("shared memory: rank " + std::to_string(rank) + " is process " + std::to_string(nobody) +
                  " already; each rank opens a group once");
}

Seat& ShmSegment::seat(int rank) const { return reinterpret_cast<Seat*>(memory_ + seats_at())[rank]; }

std::byte* ShmSegment::slot(int rank, uint64_t round) const {
  return memory_ + slots_at(size_) + (2 * rank + static_cast<int64_t>(round & 1)) * part_bytes_;
}

void ShmSegment::fail(int rank, const std::string& text) const {
  int32_t nobody = kNobody;
  if (!header().failed.compare_exchange_strong(nobody, kBeingWritten)) return;
  std::memcpy(header().text, text.data(), std::min<size_t>(text.size(), kTextBytes - 1));
  header().failed.store(rank + 1, std::memory_order_release);
}

bool ShmSegment::failed() const { return header().failed.load(std::memory_order_acquire) > 0; }

std::string ShmSegment::failure() const {
  const int32_t state = header().failed.load(std::memory_order_acquire);
  if (state <= 0) return {};
  return "rank " + std::to_string(state - 1) + " failed in " +
         std::string(header().text, strnlen(header().text, kTextBytes));
}

}  // namespace torch_cpullm::comm
