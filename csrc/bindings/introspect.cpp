#include "bindings/ops.h"
#include "dispatch/kernel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::bindings {

std::string isa_level() {
  static constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "amx"};
  return kNames[static_cast<int>(dispatch::level())];
}
int64_t scratch_bytes() { return static_cast<int64_t>(runtime::thread_scratch().used()); }
std::string isa_fault() { return dispatch::forced_fault(); }
std::string cpu_features() { return dispatch::feature_names(dispatch::cpu_features()); }
std::string kernel_report() { return dispatch::kernel_report(); }

}  // namespace torch_cpullm::bindings
