// The norms of one row: the row is copied, or moved to its mean, into `out`, and scaled there. Included by
// rowwise_body.h inside the target region.
#pragma once
#include "isa/tail.h"
#include "kernels/rowwise/rowwise.h"

namespace torch_cpullm {
namespace {

void rms_norm(layout::ConstElements x, layout::ConstElements weight, float offset, float eps, int64_t n, float* out) {
  f32x16 squares = zero_f32();
  with_type(x, [&](const auto* from) {
    for_lanes(n, [&](int64_t i, auto lanes) {
      const f32x16 a = lanes.load(from + i);
      squares = fma(a, a, squares);
      lanes.store(out + i, a);
    });
  });
  const f32x16 inverse = set1_f32(1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(n) + eps));
  const f32x16 shift = set1_f32(offset);
  with_type(weight, [&](const auto* gain) {
    for_lanes(n, [&](int64_t i, auto lanes) {
      lanes.store(out + i, mul(mul(lanes.load(out + i), inverse), add(lanes.load(gain + i), shift)));
    });
  });
}

void layer_norm(layout::ConstElements x, layout::ConstElements weight, layout::ConstElements bias, float eps, int64_t n,
                float* out) {
  f32x16 sum = zero_f32(), squares = zero_f32();
  with_type(x, [&](const auto* from) {
    for_lanes(n, [&](int64_t i, auto lanes) {
      const f32x16 a = lanes.load(from + i);
      sum = add(sum, a);
      lanes.store(out + i, a);
    });
  });
  const f32x16 mean = set1_f32(reduce_add(sum) / static_cast<float>(n));
  for_lanes(n, [&](int64_t i, auto lanes) {
    lanes.store(out + i, sub(lanes.load(out + i), mean));
    const f32x16 centred = lanes.load(out + i);  // read back: lanes behind the row's end would count as -mean
    squares = fma(centred, centred, squares);
  });
  const f32x16 inverse = set1_f32(1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(n) + eps));
  with_type(weight, [&]<class T>(const T* gain) {
    const T* shift = static_cast<const T*>(bias.data);
    for_lanes(n, [&](int64_t i, auto lanes) {
      const f32x16 scaled = mul(lanes.load(out + i), inverse), factor = lanes.load(gain + i);
      lanes.store(out + i, shift ? fma(scaled, factor, lanes.load(shift + i)) : mul(scaled, factor));
    });
  });
}

}  // namespace
}  // namespace torch_cpullm
