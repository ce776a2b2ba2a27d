#include "dispatch/kernel.h"

#include <vector>

namespace torch_cpullm::dispatch {
namespace {

std::vector<const KernelRecord*>& records() {
  static std::vector<const KernelRecord*> all;
  return all;
}

}  // namespace

KernelRecord::KernelRecord(const char* kernel_name, const char* isa_word, uint64_t features)
    : name(kernel_name), isa(isa_word), required(features) {
  records().push_back(this);
}

std::string kernel_report() {
  std::string out;
  for (const KernelRecord* record : records()) {
    const uint64_t missing = record->required & ~usable_features();
    out += std::string(record->name) + '\t' + record->isa + '\t' + std::to_string(record->calls.load()) + '\t' +
           feature_names(missing) + '\n';
  }
  return out;
}

}  // namespace torch_cpullm::dispatch
