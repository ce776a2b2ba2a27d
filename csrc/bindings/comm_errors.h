// What goes wrong between ranks, as Python knows it.
#pragma once
#include <c10/util/Exception.h>

#include <chrono>
#include <cmath>
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
  } catch (const std::logic_error& wrong) {  // a group that is not open, or does not belong to others
    C10_THROW_ERROR(ValueError, wrong.what());
  }
}

inline std::chrono::milliseconds check_timeout(double timeout_s) {
  TORCH_CHECK_VALUE(timeout_s >= 0.001 && timeout_s < 1e6, "timeout_s: expected 0.001 seconds or more, got ",
                    timeout_s);
  return std::chrono::milliseconds(std::llround(timeout_s * 1000));
}

}  // namespace torch_cpullm::bindings
