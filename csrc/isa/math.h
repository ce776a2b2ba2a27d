// Functions of sixteen lanes. Include after the lanes, inside the target region.
#pragma once

namespace torch_cpullm {
namespace {

// x + kExponentShift is x rounded to a whole number n, with n + 127 in the last bits: the exponent of 2^n. For n in
// [-126, 127].
constexpr float kExponentShift = 12582912.0f + 127.0f;  // 1.5 * 2^23: there a float's last bit counts ones

// exp(x) within 2 ulp; exactly 0 below -87.33 (where the result would be denormal), saturated above 88.37; NaN stays.
// exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln(2)/2; ln 2 in two parts so that n * ln 2 is exact in the first
// (Cody and Waite). The polynomial is the minimax one of Cephes' expf: 6 coefficients, relative error 2^-24.
inline f32x16 exp(f32x16 x) {
  const f32x16 lowest = set1_f32(-87.33f);
  const f32x16 clamped = max(lowest, min(set1_f32(88.37f), x));  // a NaN in x passes: the second operand wins
  const f32x16 shifted = fma(clamped, set1_f32(1.44269504f), set1_f32(kExponentShift));
  const f32x16 n = sub(shifted, set1_f32(kExponentShift));
  f32x16 r = fma(n, set1_f32(-0.693359375f), clamped);
  r = fma(n, set1_f32(2.12194440e-4f), r);
  f32x16 p = set1_f32(1.9875691500e-4f);
  p = fma(p, r, set1_f32(1.3981999507e-3f));
  p = fma(p, r, set1_f32(8.3334519073e-3f));
  p = fma(p, r, set1_f32(4.1665795894e-2f));
  p = fma(p, r, set1_f32(1.6666665459e-1f));
  p = fma(p, r, set1_f32(5.0000001201e-1f));
  const f32x16 e = add(fma(p, mul(r, r), r), set1_f32(1.0f));
  return select_less(x, lowest, zero_f32(), mul(e, last_bits_as_exponent(shifted)));
}

// 2^x for x <= 127 within 3 ulp, exact for whole x; exactly 0 below -126; NaN stays. The polynomial is the minimax one
// of relative error 1e-7 among those that are 1 at 0.
inline f32x16 exp2(f32x16 x) {
  const f32x16 shifted = add(x, set1_f32(kExponentShift)), r = sub(x, sub(shifted, set1_f32(kExponentShift)));
  f32x16 p = set1_f32(1.326472731307149e-3f);
  p = fma(p, r, set1_f32(9.671512991189957e-3f));
  p = fma(p, r, set1_f32(5.550733581185341e-2f));
  p = fma(p, r, set1_f32(2.4022242426872253e-1f));
  p = fma(p, r, set1_f32(6.931470036506653e-1f));
  p = fma(p, r, set1_f32(1.0f));
  return select_less(x, set1_f32(-126.0f), zero_f32(), mul(p, last_bits_as_exponent(shifted)));
}

// 0 below -87.33: there exp(-x) saturates, and x * sigmoid(x) of a huge negative x would not vanish.
inline f32x16 sigmoid(f32x16 x) {
  const f32x16 s = div(set1_f32(1.0f), add(set1_f32(1.0f), exp(sub(zero_f32(), x))));
  return select_less(x, set1_f32(-87.33f), zero_f32(), s);
}

// 2 * sigmoid(2x) - 1: absolute error 1e-7, enough for gates and soft caps (a relative one is lost near 0).
inline f32x16 tanh(f32x16 x) { return fma(set1_f32(2.0f), sigmoid(add(x, x)), set1_f32(-1.0f)); }

}  // namespace
}  // namespace torch_cpullm
