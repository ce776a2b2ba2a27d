// What this CPU can do, by CPUID bits and what the operating system saves (XCR0); never by vendor or product name.
#pragma once
#include <cstdint>
#include <string>

namespace torch_cpullm::dispatch {

enum Feature : uint64_t {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kAvxVnni = 1u << 2,
  kAvx512f = 1u << 3,
  kAvx512bw = 1u << 4,
  kAvx512dq = 1u << 5,
  kAvx512vl = 1u << 6,
  kAvx512Vnni = 1u << 7,
  kAvx512Bf16 = 1u << 8,
  kAmxTile = 1u << 9,
  kAmxInt8 = 1u << 10,
  kAmxBf16 = 1u << 11,
  kF16c = 1u << 12,
};

constexpr uint64_t kAvx2Set = kAvx2 | kFma | kF16c;
constexpr uint64_t kAvx512Set = kAvx2Set | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl;
constexpr uint64_t kAmxSet = kAvx512Set | kAvx512Vnni | kAmxTile | kAmxInt8 | kAmxBf16;

// A cap on what may be used: TORCH_CPULLM_ISA=scalar|avx2|avx512|amx, and features to leave out: "avx2,-avxvnni".
// It lowers, it never adds a feature.
enum class Level { scalar = 0, avx2 = 1, avx512 = 2, amx = 3 };

uint64_t cpu_features();     // what the machine has and the system lets this process use
uint64_t usable_features();  // what the cap leaves of it
Level level();               // the highest level with usable features
bool has(Feature feature);   // usable
std::string feature_names(uint64_t features);
int64_t l2_bytes();  // of one core; 1 MiB when the system does not say

// A sentence when TORCH_CPULLM_ISA holds an unknown word or asks for what this CPU lacks; empty otherwise. No
// exception: it would leave a library that is being loaded, and end the process.
std::string forced_fault();

}  // namespace torch_cpullm::dispatch
