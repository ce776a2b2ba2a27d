// The probes, written once against the lanes of isa/*.h; each ISA file includes this inside its target region.
#pragma once
#include "kernels/probe/probe.h"

namespace torch_cpullm {
namespace {

// 12 chains: two instructions a cycle of latency 4 or 5 need 8 to 10 in flight.
constexpr int kChains = 12;
constexpr int kRounds = 64;

// Eight loads a round, and lines prefetched as far ahead as the linear kernels do: without that two threads of the
// machine this was measured on read 5 to 10 % less. The sums only keep the loads alive.
constexpr int64_t kAheadFloats = 1024;
inline float stream_read(const float* data, int64_t n) {
  f32x16 sum[8];
  for (f32x16& s : sum) s = zero_f32();
  int64_t i = 0;
  for (; i + 128 <= n; i += 128) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      __builtin_prefetch(data + i + 16 * j + kAheadFloats);
      sum[j] = add(sum[j], load_f32(data + i + 16 * j));
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = add(sum[0], sum[j]);
  return reduce_add(sum[0]);
}

inline int64_t peak_f32(int64_t iterations, float* sink) {
  f32x16 acc[kChains];
  for (f32x16& a : acc) a = zero_f32();
  const f32x16 x = set1_f32(1.0f), y = set1_f32(sink[0]);
  for (int64_t i = 0; i < iterations * kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = fma(x, y, acc[c]);
  }
  for (int c = 1; c < kChains; ++c) acc[0] = add(acc[0], acc[c]);
  sink[0] = reduce_add(acc[0]);
  return iterations * kRounds * kChains * 16 * 2;
}

// A template so that ISA files without dot2 or dot4 may include this header.
template <class F32 = f32x16>
int64_t peak_bf16(int64_t iterations, float* sink) {
  F32 acc[kChains];
  for (F32& a : acc) a = zero_f32();
  const uint8_t zeros[64] = {};
  const auto weight = load_bf16(zeros);
  const auto ones = set1_i32(0x3f803f80);
  for (int64_t i = 0; i < iterations * kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = dot2(acc[c], weight, ones);
  }
  for (int c = 1; c < kChains; ++c) acc[0] = add(acc[0], acc[c]);
  sink[0] = reduce_add(acc[0]);
  return iterations * kRounds * kChains * 32 * 2;
}

template <class I32 = i32x16>
int64_t peak_int8(int64_t iterations, float* sink) {
  I32 acc[kChains];
  for (I32& a : acc) a = set1_i32(0);
  const uint8_t zeros[64] = {};
  const auto weight = load_u8(zeros);
  const I32 ones = set1_i32(0x01010101);
  for (int64_t i = 0; i < iterations * kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = dot4(acc[c], weight, ones);
  }
  f32x16 total = to_f32(acc[0]);
  for (int c = 1; c < kChains; ++c) total = add(total, to_f32(acc[c]));
  sink[0] = reduce_add(total);
  return iterations * kRounds * kChains * 64 * 2;
}

}  // namespace
}  // namespace torch_cpullm
