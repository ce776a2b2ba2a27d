// Groups by number, since operators take plain numbers and tensors; 0 is no group.
//
// A number stands for one way to reach the other ranks or for several, of which each message takes the one for its
// size:
//
//   0 ...... limit of route 0 ...... limit of route 1 ......     bytes of a part
//     [ route 0 ]              [ route 1 ]         [ route 2, the last: everything above ]
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/group.h"

namespace torch_cpullm::comm {

struct Route {
  int64_t limit;  // the longest part that goes this way; of the last one, no matter
  std::shared_ptr<Group> group;
};

class Routes {
 public:
  // One at least, limits in ascending order, all of the same ranks.
  explicit Routes(std::vector<Route> routes) : routes_(std::move(routes)) {}

  int rank() const { return routes_[0].group->rank(); }
  int size() const { return routes_[0].group->size(); }
  // Collectives so far, by any way.
  int64_t count() const;
  // "shm", or "shm up to 262144 bytes, ccl".
  std::string transport() const;
  // Of one part by any way. A longer message is the caller's to cut.
  int64_t most_bytes() const { return routes_.back().group->most_bytes(); }

  // Which group a part of so many bytes is for.
  Group& of(int64_t bytes) const;
  const std::vector<Route>& all() const { return routes_; }
  // What went wrong on any of them.
  void rethrow() const;

 private:
  std::vector<Route> routes_;
};

int64_t add(std::unique_ptr<Group> group);

// A number for several groups, part sizes up to limits[i] by groups[i] and all others by the last. They stay open as
// long as the new number is, their own may be closed. Throws std::out_of_range for a number that is none, and
// std::invalid_argument where they do not belong together.
int64_t add_routes(const std::vector<int64_t>& groups, const std::vector<int64_t>& limits);

// Throws std::out_of_range for a number that is none, or was closed, and Failure in a child of fork(): it is not the
// rank. The groups live on while this is held.
std::shared_ptr<const Routes> find(int64_t number);

// In a child of fork() the number is forgotten, and the parent's group stays open.
void close(int64_t number);

}  // namespace torch_cpullm::comm
