// AMX: eight registers of up to 16 rows of 64 bytes, and products of two of them added to a third,
//
//   C[m][n] += sum over k of A[m][k] * B[k][n]     A 16 rows of 64 bytes, B 16 lines of 16 columns with 4 bytes each:
//                                                  the lines of layout/panel.h. C 16 x 16 float or int32.
//
// Include in place of isa/avx512.h. In assembly: GCC 12's intrinsics do not say that they read and write memory.
#pragma once
#define TORCH_CPULLM_AMX
#include "isa/avx512.h"
#include "layout/panel.h"

namespace torch_cpullm {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 1024;

// The compiler may not leave out what `a` came from.
inline void keep(u8x64 a) { __asm__ volatile("" : : "v"(a)); }
inline i32x16 load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }

template <int Tile>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Tile>
inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}
// C += A * B, both bf16; a denormal counts as 0.
template <int C, int A, int B>
inline void tile_dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// A signed; B unsigned, or signed.
template <int C, int A, int B>
inline void tile_dot_s8_u8() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void tile_dot_s8_s8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// The shapes of the eight registers, as ldtilecfg reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t row_count, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(row_count);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// Shapes in force while it lives; then the thread's own again, or none. oneDNN's kernels run in the same threads and
// believe what they loaded to be still there. 45 ns each way.
class TileScope {
 public:
  explicit TileScope(const TileShapes& shapes) {
    __asm__ volatile("sttilecfg %0" : "=m"(before_));
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
  }
  ~TileScope() {
    if (before_.palette) {
      __asm__ volatile("ldtilecfg %0" : : "m"(before_));
    } else {
      __asm__ volatile("tilerelease");
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  TileShapes before_;
};

}  // namespace
}  // namespace torch_cpullm
