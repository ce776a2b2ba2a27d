// What goes wrong between ranks, as Python knows it.
#pragma once
#include <c10/util/Exception.h>

#include <chrono>
#include <stdexcept>

#include "comm/group.h"

namespace torch_cpullm::bindings {

// DistBackendError for a failure, and its base for Ctrl-C.
template <class Body>
auto translated(const Body& body) {
  try {
    return body();
  } catch (const comm::Interrupted& interrupted) {
    C10_THROW_ERROR(DistError, interrupted.what());
  } catch (const comm::Failure& failure) {
    C10_THROW_ERROR(DistBackendError, failure.what());
  } catch (const std::out_of_range& unknown) {
    C10_THROW_ERROR(ValueError, unknown.what());
  }
}

inline std::chrono::milliseconds check_timeout(double timeout_s) {
  TORCH_CHECK_VALUE(timeout_s > 0 && timeout_s < 1e6, "timeout_s: expected seconds above 0, got ", timeout_s);
  return std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1000) + 1);
}

}  // namespace torch_cpullm::bindings
