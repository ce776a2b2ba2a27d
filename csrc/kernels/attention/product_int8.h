// Rows against lines of int8 codes: for ISA files whose lanes have dot4.
//
//   sum of a[k] * (b[k] - 128), a = 128 * high + low: two products of bytes, and 128 times the sum of a taken off
#pragma once
#include "kernels/attention/product_body.h"

namespace torch_cpullm {
namespace {

struct Int8Product {
  static constexpr int64_t kDepth = 4;
  static constexpr int kSums = 2;
  struct Sum {
    i32x16 high, low;
  };
  struct Left {
    i32x16 high, low;
  };
  static Sum start(const int32_t* sum, int64_t row) { return {set1_i32(0), dot4_start(set1_i32(-sum[row]))}; }
  static u8x64 line(const uint8_t* p) { return load_u8(p); }
  static Left left(const uint8_t* p, int64_t plane) { return {broadcast_four(p), broadcast_four(p + plane)}; }
  static void add_to(Sum& s, u8x64 b, Left a) {
    s.high = dot4(s.high, b, a.high);
    s.low = dot4(s.low, b, a.low);
  }
  static f32x16 value(const Sum& s) { return to_f32(add(shift_left(s.high, 7), s.low)); }
};

}  // namespace
}  // namespace torch_cpullm
