#include "comm/registry.h"

#include <map>
#include <mutex>

namespace torch_cpullm::comm {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<Group>> groups;
  int64_t last = 0;
};

// Never destroyed: threads of a process that exits may still look a group up.
Registry& registry() {
  static Registry& it = *new Registry;
  return it;
}

}  // namespace

int64_t add(std::unique_ptr<Group> group) {
  const std::lock_guard lock(registry().mutex);
  registry().groups.emplace(++registry().last, std::move(group));
  return registry().last;
}

std::shared_ptr<Group> find(int64_t number) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().groups.find(number);
  if (found == registry().groups.end())
    throw std::out_of_range("group: expected one that is open, got " + std::to_string(number));
  return found->second;
}

void close(int64_t number) {
  std::shared_ptr<Group> last;  // destroyed without the lock
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().groups.find(number);
  if (found == registry().groups.end()) return;
  last = std::move(found->second);
  registry().groups.erase(found);
}

}  // namespace torch_cpullm::comm
