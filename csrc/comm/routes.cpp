#include "comm/routes.h"

#include <map>
#include <mutex>
#include <stdexcept>

namespace torch_cpullm::comm {
namespace {

struct Entry {
  std::shared_ptr<const Routes> routes;
  int forks;  // of the process that opened it

  bool is_of_parent() const { return forks != runtime::forks(); }
};

struct Registry {
  std::mutex mutex;
  std::map<int64_t, Entry> entries;
  int64_t last = 0;
};

// Never destroyed: threads of a process that exits may still look a group up.
Registry& registry() {
  static Registry& it = *new Registry;
  return it;
}

int64_t keep(std::vector<Route> routes) {
  const std::lock_guard lock(registry().mutex);
  registry().entries.emplace(++registry().last,
                             Entry{std::make_shared<const Routes>(std::move(routes)), runtime::forks()});
  return registry().last;
}

}  // namespace

std::string Routes::transport() const {
  std::string names;
  for (const Route& route : routes_) {
    names += route.group->transport();
    if (&route != &routes_.back()) names += " up to " + std::to_string(route.limit) + " bytes, ";
  }
  return names;
}

int64_t Routes::count() const {
  int64_t count = 0;
  for (const Route& route : routes_) count += route.group->count();
  return count;
}

Group& Routes::of(int64_t bytes) const {
  for (const Route& route : routes_)
    if (bytes <= route.limit) return *route.group;
  return *routes_.back().group;
}

void Routes::rethrow() const {
  for (const Route& route : routes_) route.group->rethrow();
}

int64_t add(std::unique_ptr<Group> group) { return keep({{0, std::move(group)}}); }

int64_t add_routes(const std::vector<int64_t>& groups, const std::vector<int64_t>& limits) {
  if (groups.empty() || limits.size() + 1 != groups.size())
    throw std::invalid_argument("limits: expected one between each two of the groups, got " +
                                std::to_string(limits.size()) + " for " + std::to_string(groups.size()));
  std::vector<Route> routes;
  for (size_t i = 0; i < groups.size(); ++i) {
    const std::shared_ptr<const Routes> found = find(groups[i]);
    const Group& first = routes.empty() ? *found->all()[0].group : *routes[0].group;
    const bool same = found->rank() == first.rank() && found->size() == first.size();
    if (found->all().size() != 1 || !same)
      throw std::invalid_argument("groups: expected single ones of the same ranks, got number " +
                                  std::to_string(groups[i]) + ", which is rank " + std::to_string(found->rank()) +
                                  " of " + std::to_string(found->size()) + " over " + found->transport());
    const int64_t limit = i < limits.size() ? limits[i] : 0;
    if (i < limits.size() && (limit < 0 || limit > found->most_bytes() || (i > 0 && limit < limits[i - 1])))
      throw std::invalid_argument("limits: expected ascending numbers of bytes that the groups can hand over, got " +
                                  std::to_string(limit) + " for " + found->transport());
    routes.push_back({limit, found->all()[0].group});
  }
  return keep(std::move(routes));
}

std::shared_ptr<const Routes> find(int64_t number) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().entries.find(number);
  if (found == registry().entries.end()) {
    const bool was_open = number > 0 && number <= registry().last;
    throw std::out_of_range("group: expected one that is open, got " + std::to_string(number) +
                            (was_open ? ", which is closed, as after torch_cpullm.distributed.shutdown(); models that "
                                        "were shared before have to be loaded again after init()"
                                      : ""));
  }
  if (found->second.is_of_parent())
    throw Failure(
        "group: expected the process that opened it, got a child that was forked from that rank; let the rank itself "
        "compute, or call torch_cpullm.distributed.shutdown() in the child and load a model for it alone");
  return found->second.routes;
}

void close(int64_t number) {
  std::shared_ptr<const Routes> last;  // destroyed without the lock
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().entries.find(number);
  if (found == registry().entries.end()) return;
  last = std::move(found->second.routes);
  // A destructor would say to the other ranks that the parent has left, or wait for threads that only the parent has.
  if (found->second.is_of_parent()) new std::shared_ptr<const Routes>(std::move(last));
  registry().entries.erase(found);
}

}  // namespace torch_cpullm::comm
