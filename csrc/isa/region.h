// Opens a target region that lasts to the end of the including file. TORCH_CPULLM_TARGET names the CPU features.
// A region and not a compiler flag: with -mavx512f on a file, std functions inlined from headers leak vector
// instructions into weak symbols that a smaller CPU may then run. Everything after this line sits in anonymous
// namespaces. The region lasts to the end of the file, where templates are instantiated; region_end.h closes it for
// clang, which insists.
// (no include guard: each kernel file opens its one region)
#define TORCH_CPULLM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TORCH_CPULLM_OPEN(features) \
  TORCH_CPULLM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#else
#define TORCH_CPULLM_OPEN(features) TORCH_CPULLM_PRAGMA(GCC target(features))
#endif
TORCH_CPULLM_OPEN(TORCH_CPULLM_TARGET)
