#include "runtime/scratch.h"

namespace torch_cpullm::runtime {

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace torch_cpullm::runtime
