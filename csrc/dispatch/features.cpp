#include "dispatch/features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

namespace torch_cpullm::dispatch {
namespace {

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{};
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

uint64_t saved_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process the 8 KiB of tile registers only when asked (since 5.16); all its threads then have them.
bool tiles_granted() {
#if defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

uint64_t detect() {
  uint64_t found = 0;
  const auto add = [&](bool present, Feature feature) {
    if (present) found |= feature;
  };
  const Registers basic = cpuid(1, 0);
  if (!bit(basic.ecx, 27)) return 0;  // OSXSAVE: without it no vector state is saved
  const uint64_t xcr0 = saved_state();
  const bool saves_ymm = (xcr0 & 0x6) == 0x6;
  const bool saves_zmm = (xcr0 & 0xe6) == 0xe6;
  const Registers extended = cpuid(7, 0), more = cpuid(7, 1);
  const bool saves_tiles = (xcr0 & 0x60000) == 0x60000 && bit(extended.edx, 24) && tiles_granted();
  add(saves_ymm && bit(extended.ebx, 5), kAvx2);
  add(saves_ymm && bit(basic.ecx, 12), kFma);
  add(saves_ymm && bit(basic.ecx, 29), kF16c);
  add(saves_ymm && bit(more.eax, 4), kAvxVnni);
  add(saves_zmm && bit(extended.ebx, 16), kAvx512f);
  add(saves_zmm && bit(extended.ebx, 30), kAvx512bw);
  add(saves_zmm && bit(extended.ebx, 17), kAvx512dq);
  add(saves_zmm && bit(extended.ebx, 31), kAvx512vl);
  add(saves_zmm && bit(extended.ecx, 11), kAvx512Vnni);
  add(saves_zmm && bit(more.eax, 5), kAvx512Bf16);
  add(saves_tiles, kAmxTile);
  add(saves_tiles && bit(extended.edx, 25), kAmxInt8);
  add(saves_tiles && bit(extended.edx, 22), kAmxBf16);
  return found;
}

// What a level may use beside its set.
constexpr uint64_t kAvx2Words = kAvx2Set | kAvxVnni;
constexpr uint64_t kAvx512Words = kAvx2Words | kAvx512Set | kAvx512Vnni | kAvx512Bf16;

constexpr struct {
  const char* name;
  Level level;
  uint64_t needed, allowed;
} kLevels[] = {{"scalar", Level::scalar, 0, 0},
               {"avx2", Level::avx2, kAvx2Set, kAvx2Words},
               {"avx512", Level::avx512, kAvx512Set, kAvx512Words},
               {"amx", Level::amx, kAmxSet, ~uint64_t{0}}};

constexpr struct {
  Feature feature;
  const char* name;
} kNames[] = {{kAvx2, "avx2"},
              {kFma, "fma"},
              {kF16c, "f16c"},
              {kAvxVnni, "avxvnni"},
              {kAvx512f, "avx512f"},
              {kAvx512bw, "avx512bw"},
              {kAvx512dq, "avx512dq"},
              {kAvx512vl, "avx512vl"},
              {kAvx512Vnni, "avx512vnni"},
              {kAvx512Bf16, "avx512bf16"},
              {kAmxTile, "amxtile"},
              {kAmxInt8, "amxint8"},
              {kAmxBf16, "amxbf16"}};

// "level" or "level,-feature,-feature": the features the variable leaves of all, and whether every word was known.
struct Forced {
  uint64_t allowed = ~uint64_t{0}, needed = 0;
  bool known = true;
};

Forced read_forced() {
  Forced forced;
  const char* variable = std::getenv("TORCH_CPULLM_ISA");
  std::string rest = variable ? variable : "";
  while (!rest.empty()) {
    const std::string word = rest.substr(0, rest.find(','));
    rest = rest.size() > word.size() ? rest.substr(word.size() + 1) : "";
    bool found = false;
    for (const auto& level : kLevels) {
      if (word != level.name) continue;
      forced.allowed &= level.allowed;
      forced.needed = level.needed;
      found = true;
    }
    for (const auto& [feature, name] : kNames) {
      if (word.size() < 2 || word[0] != '-' || word.compare(1, std::string::npos, name) != 0) continue;
      forced.allowed &= ~static_cast<uint64_t>(feature);
      found = true;
    }
    forced.known = forced.known && found;
  }
  return forced;
}

}  // namespace

std::string forced_fault() {
  const Forced forced = read_forced();
  const char* variable = std::getenv("TORCH_CPULLM_ISA");
  if (!forced.known)
    return std::string(
               "TORCH_CPULLM_ISA: expected scalar, avx2, avx512 or amx, then ',-feature' for features to leave out, "
               "got '") +
           variable + "'";
  if ((cpu_features() & forced.needed) != forced.needed)
    return std::string("TORCH_CPULLM_ISA: this CPU lacks what '") + variable + "' needs; it has " +
           feature_names(cpu_features());
  return "";
}

uint64_t cpu_features() {
  static const uint64_t features = detect();
  return features;
}

uint64_t usable_features() {
  static const uint64_t features = cpu_features() & read_forced().allowed;
  return features;
}

Level level() {
  Level highest = Level::scalar;
  for (const auto& level : kLevels)
    if ((usable_features() & level.needed) == level.needed) highest = level.level;
  return highest;
}

bool has(Feature feature) { return (usable_features() & feature) == feature; }

std::string feature_names(uint64_t features) {
  std::string out;
  for (const auto& [feature, name] : kNames) {
    if (!(features & feature)) continue;
    if (!out.empty()) out += ',';
    out += name;
  }
  return out;
}

int64_t l2_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t reported = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (reported > 0) return reported;
#endif
  return int64_t{1} << 20;
}

}  // namespace torch_cpullm::dispatch
