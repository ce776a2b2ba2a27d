// For building llama-cpp-python with GCC up to 14 on a CPU with AMX, see bench/README.md. Its _tile_loadconfig tells the
// optimiser that 8 of the 64 bytes are read; the stores to the others are dropped, and ldtilecfg faults.
#pragma once
#include <immintrin.h>
#ifdef __AMX_TILE__
static inline void whole_tile_config(const void* config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])config));
}
#define _tile_loadconfig whole_tile_config
#endif
