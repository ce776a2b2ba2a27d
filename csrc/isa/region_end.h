// Closes the target region that region.h opened; the last line of a kernel file. (no include guard, like region.h)
#if defined(__clang__)
#pragma clang attribute pop
#endif
