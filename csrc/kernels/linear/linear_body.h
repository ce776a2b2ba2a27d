// The linear kernels, written once against the lanes of isa/*.h; each ISA file includes this inside its target region.
//
// Per step and tile of R rows: 4 weight vectors are loaded, R activations broadcast, 4R multiply-accumulates issued.
// At R = 6 on AVX-512 that is 24 of the latter in 12 cycles against 10 loads: arithmetic bound. At R = 1 the 256
// bytes of weights are what costs: memory bound, 4 accumulators suffice (4 cycles of latency each, one load a cycle).
#pragma once
#include <cstring>

#include "kernels/linear/linear.h"

namespace torch_cpullm {
namespace {

constexpr int kColumnVectors = 4;  // 64 columns in lanes of 16

template <class T>
inline T load_element(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

template <int Rows>
inline void load_c(const kernels::LinearTile& t, f32x16 (&acc)[Rows][kColumnVectors]) {
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kColumnVectors; ++v) acc[r][v] = load_f32(t.c + r * t.c_stride + 16 * v);
  }
}

template <int Rows>
inline void store_c(const kernels::LinearTile& t, const f32x16 (&acc)[Rows][kColumnVectors]) {
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kColumnVectors; ++v) store_f32(t.c + r * t.c_stride + 16 * v, acc[r][v]);
  }
}

struct TileF32 {
  template <int Rows>
  static void run(const kernels::LinearTile& t) {
    f32x16 acc[Rows][kColumnVectors];
    load_c<Rows>(t, acc);
    for (int64_t s = 0; s < t.steps; ++s) {
      const auto* weight = reinterpret_cast<const float*>(t.weight + s * layout::kStepBytes);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const f32x16 a = set1_f32(load_element<float>(t.act + r * t.act_stride + s * 4));
#pragma GCC unroll 4
        for (int v = 0; v < kColumnVectors; ++v) acc[r][v] = fma(load_f32(weight + 16 * v), a, acc[r][v]);
      }
    }
    store_c<Rows>(t, acc);
  }
};

struct TileBf16 {
  template <int Rows>
  static void run(const kernels::LinearTile& t) {
    f32x16 acc[Rows][kColumnVectors];
    load_c<Rows>(t, acc);
    for (int64_t s = 0; s < t.steps; ++s) {
      const auto* weight = reinterpret_cast<const uint16_t*>(t.weight + s * layout::kStepBytes);
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const auto pair = load_element<uint32_t>(t.act + r * t.act_stride + s * 4);
#pragma GCC unroll 4
        for (int v = 0; v < kColumnVectors; ++v) acc[r][v] = dot2(acc[r][v], weight + 32 * v, pair);
      }
    }
    store_c<Rows>(t, acc);
  }
};

// A template only so that an ISA file without dot4 may include this header: the name is looked up when it is used.
struct TileS8 {
  template <int Rows, class I32 = i32x16>
  static void run(const kernels::LinearTile& t) {
    for (int64_t first = 0, group = 0; first < t.steps; first += kernels::kStepsPerGroup, ++group) {
      const int64_t last = first + kernels::kStepsPerGroup < t.steps ? first + kernels::kStepsPerGroup : t.steps;
      I32 sum[Rows][kColumnVectors];
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const I32 offset = set1_i32(-kDot4Offset * t.act_sum[r * t.group_stride + group]);
#pragma GCC unroll 4
        for (int v = 0; v < kColumnVectors; ++v) sum[r][v] = offset;
      }
      for (int64_t s = first; s < last; ++s) {
        const uint8_t* weight = t.weight + s * layout::kStepBytes;
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
          const auto four = load_element<int32_t>(t.act + r * t.act_stride + s * 4);
#pragma GCC unroll 4
          for (int v = 0; v < kColumnVectors; ++v) sum[r][v] = dot4(sum[r][v], weight + 64 * v, four);
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < Rows; ++r) {
        const f32x16 scale = set1_f32(t.act_scale[r * t.group_stride + group]);
#pragma GCC unroll 4
        for (int v = 0; v < kColumnVectors; ++v) {
          float* c = t.c + r * t.c_stride + 16 * v;
          store_f32(c, fma(scale, to_f32(sum[r][v]), load_f32(c)));
        }
      }
    }
  }
};

// Rows is a template parameter so that the accumulators are registers; a tile with fewer rows takes the smaller twin.
template <class Tile, int Rows = kLinearTileRows>
void run_tile(const kernels::LinearTile& t) {
  if constexpr (Rows > 1) {
    if (t.rows < Rows) return run_tile<Tile, Rows - 1>(t);
  }
  Tile::template run<Rows>(t);
}

}  // namespace
}  // namespace torch_cpullm
