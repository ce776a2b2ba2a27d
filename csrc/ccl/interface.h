// All that _C.so knows of oneCCL: functions that _ccl.so hands over in one table. They throw nothing, and none of
// oneCCL's types, nor of C++'s library, crosses the border: the two libraries may come from different compilers.
//
//   address -> join() -> Communicator -> a collective -> Request -> test() until it is done -> release()
#pragma once
#include <cstddef>

namespace torch_cpullm::ccl {

constexpr size_t kAddressBytes = 256;

struct Communicator;
struct Request;

enum class State : int { failed = -1, running = 0, done = 1 };

struct Functions {
  // What went wrong in the last call of this thread that failed.
  const char* (*error)();

  // address[kAddressBytes]: where the others find this rank, which answers them as long as its process lives.
  State (*start)(char* address);
  // Blocks until all ranks have joined. Null: it failed. There is no way back: destroying a communicator waits for
  // ranks that may be gone (measured: for ever), so it lives as long as the process.
  Communicator* (*join)(const char* address, int rank, int size);

  // Null: it failed. The memory has to stay until the request is done; lists of sizes may go.
  // all: bytes[0] bytes from rank 0, then bytes[1] from rank 1 ...; `mine` may be this rank's place in it.
  Request* (*all_gather)(Communicator*, const void* mine, void* all, const size_t* bytes);
  // from: sent[0] bytes for rank 0, then sent[1] for rank 1 ...; to: received[0] bytes from rank 0, and so on.
  Request* (*all_to_all)(Communicator*, const void* from, const size_t* sent, void* to, const size_t* received);

  // Never blocks. Moves things on: nothing is sent or received between two calls.
  State (*test)(Request*);
  // Of a request that is done. Another is lost: it has to stay, and its memory with it.
  void (*release)(Request*);
};

constexpr const char* kEntry = "torch_cpullm_ccl";
using Entry = const Functions* (*)();

}  // namespace torch_cpullm::ccl
