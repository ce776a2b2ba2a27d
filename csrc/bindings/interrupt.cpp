// Ctrl-C while ranks wait for each other. Python's handler only notes the signal; whoever runs C++ has to ask. _C.so is
// built without Python's headers, so its functions are looked up in the process; there are none outside of Python.
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "comm/wait.h"

namespace torch_cpullm::bindings {
namespace {

template <class Function>
Function* look_up(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// Consumes the signal: the Python front raises KeyboardInterrupt in its stead. Only the main thread is asked, where
// Python handles signals; others could not take the GIL while the interpreter ends.
bool interrupted() {
  static const auto ensure = look_up<int()>("PyGILState_Ensure");
  static const auto release = look_up<void(int)>("PyGILState_Release");
  static const auto occurred = look_up<int()>("PyOS_InterruptOccurred");
  if (!ensure || !release || !occurred || syscall(SYS_gettid) != getpid()) return false;
  const int state = ensure();
  const bool found = occurred() != 0;
  release(state);
  return found;
}

[[maybe_unused]] const bool set = (comm::set_interrupt_check(interrupted), true);

}  // namespace
}  // namespace torch_cpullm::bindings
