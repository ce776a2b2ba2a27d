// _ccl.so, the only code that includes oneCCL's headers (2021.13: the last release with a shared library for CPUs
// that needs no SYCL).
#include <exception>
#include <memory>
#include <oneapi/ccl.hpp>
#include <string>
#include <vector>

#include "ccl/interface.h"

namespace torch_cpullm::ccl {

namespace intel = ::ccl;

struct Communicator {
  std::shared_ptr<intel::kvs> meeting;
  intel::communicator ranks;
};
struct Request {
  intel::event event;
};

namespace {

thread_local std::string last_error;

// body(), or `failed` for an exception.
template <class Result, class Body>
Result guarded(Result failed, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown error";
  }
  return failed;
}

// Others find rank 0 through it for as long as they want to join.
std::shared_ptr<intel::kvs> started;

const char* error() { return last_error.c_str(); }

State start(char* address) {
  return guarded(State::failed, [&] {
    intel::init();
    started = intel::create_main_kvs();
    const intel::kvs::address_type where = started->get_address();
    static_assert(sizeof(where) == kAddressBytes);
    std::copy(where.begin(), where.end(), address);
    return State::done;
  });
}

Communicator* join(const char* address, int rank, int size) {
  return guarded<Communicator*>(nullptr, [&] {
    intel::init();
    intel::kvs::address_type where;
    std::copy(address, address + kAddressBytes, where.begin());
    std::shared_ptr<intel::kvs> meeting =
        started && started->get_address() == where ? started : intel::create_kvs(where);
    return new Communicator{meeting, intel::create_communicator(size, rank, meeting)};
  });
}

std::vector<size_t> sizes(const Communicator* communicator, const size_t* bytes) {
  return {bytes, bytes + communicator->ranks.size()};
}

Request* all_gather(Communicator* communicator, const void* mine, void* all, const size_t* bytes) {
  return guarded<Request*>(nullptr, [&] {
    return new Request{intel::allgatherv(mine, bytes[communicator->ranks.rank()], all, sizes(communicator, bytes),
                                         intel::datatype::uint8, communicator->ranks)};
  });
}

Request* all_to_all(Communicator* communicator, const void* from, const size_t* sent, void* to,
                    const size_t* received) {
  return guarded<Request*>(nullptr, [&] {
    return new Request{intel::alltoallv(from, sizes(communicator, sent), to, sizes(communicator, received),
                                        intel::datatype::uint8, communicator->ranks)};
  });
}

State test(Request* request) {
  return guarded(State::failed, [&] { return request->event.test() ? State::done : State::running; });
}

void release(Request* request) { delete request; }

constexpr Functions kFunctions{error, start, join, all_gather, all_to_all, test, release};

}  // namespace

}  // namespace torch_cpullm::ccl

extern "C" __attribute__((visibility("default"))) const torch_cpullm::ccl::Functions* torch_cpullm_ccl() {
  return &torch_cpullm::ccl::kFunctions;
}
