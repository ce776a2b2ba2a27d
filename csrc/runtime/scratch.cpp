#include "runtime/scratch.h"

namespace torch_cpullm::runtime {
namespace {

Scratch& thread_block() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace

Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

ThreadBlock::ThreadBlock(size_t bytes) : scratch_(thread_block()) { scratch_.reserve(bytes); }

}  // namespace torch_cpullm::runtime
