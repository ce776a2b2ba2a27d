// Groups by number, since operators take plain numbers and tensors. 0 is no group.
#pragma once
#include <cstdint>
#include <memory>

#include "comm/group.h"

namespace torch_cpullm::comm {

int64_t add(std::unique_ptr<Group> group);

// Throws std::out_of_range for a number that is none, or whose group was closed. The group lives on while it is held.
std::shared_ptr<Group> find(int64_t number);

void close(int64_t number);

}  // namespace torch_cpullm::comm
