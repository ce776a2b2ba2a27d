#include "comm/routes.h"

#include <map>
#include <mutex>
#include <stdexcept>

namespace torch_cpullm::comm {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<const Routes>> routes;
  int64_t last = 0;
};

// Never destroyed: threads of a process that exits may still look a group up.
Registry& registry() {
  static Registry& it = *new Registry;
  return it;
}

int64_t keep(std::vector<Route> routes) {
  const std::lock_guard lock(registry().mutex);
  registry().routes.emplace(++registry().last, std::make_shared<const Routes>(std::move(routes)));
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
  const auto found = registry().routes.find(number);
  if (found == registry().routes.end())
    throw std::out_of_range("group: expected one that is open, got " + std::to_string(number));
  return found->second;
}

void close(int64_t number) {
  std::shared_ptr<const Routes> last;  // destroyed without the lock
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().routes.find(number);
  if (found == registry().routes.end()) return;
  last = std::move(found->second);
  registry().routes.erase(found);
}

}  // namespace torch_cpullm::comm
