// exp and log of vectors, with an error of about one unit in the last place.
#pragma once

namespace uniproc::simd {
// Each source its own, for its instructions.
namespace {

// e^x = 2^n e^r with n an integer and |r| <= ln(2) / 2, e^r by its Taylor series (the eighth term
// is below half a unit in the last place). 0 below the smallest normal number, at most 2.4e38.
template <class V>
inline V exp(V x) {
  const V clamped = V::min(V::broadcast(88.376f), V::max(V::broadcast(-88.0f), x));  // keeps NaN
  const V n = round(clamped * V::broadcast(1.44269504f));
  // ln(2) in two parts; the first has few enough bits for an exact product with n.
  V r = fma(n, V::broadcast(-0.693359375f), clamped);
  r = fma(n, V::broadcast(2.12194440e-4f), r);
  V series = V::broadcast(1.0f / 5040);
  series = fma(series, r, V::broadcast(1.0f / 720));
  series = fma(series, r, V::broadcast(1.0f / 120));
  series = fma(series, r, V::broadcast(1.0f / 24));
  series = fma(series, r, V::broadcast(1.0f / 6));
  series = fma(series, r, V::broadcast(0.5f));
  series = fma(series, r, V::broadcast(1.0f));
  series = fma(series, r, V::broadcast(1.0f));
  return selectLess(x, V::broadcast(-87.3f), V::zero(), series * pow2(n));
}

// log(x) = e ln(2) + log(m) with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 atanh(s) = 2 (s + s^3/3
// + ...) with s = (m - 1) / (m + 1). x must be positive and normal.
template <class V>
inline V log(V x) {
  V m;
  const V e = splitExponent(x, &m);
  const V one = V::broadcast(1.0f);
  const V s = (m - one) / (m + one);
  const V s2 = s * s;
  V series = V::broadcast(2.0f / 9);
  series = fma(series, s2, V::broadcast(2.0f / 7));
  series = fma(series, s2, V::broadcast(2.0f / 5));
  series = fma(series, s2, V::broadcast(2.0f / 3));
  const V tail = fma(series * s2, s, e * V::broadcast(-2.12194440e-4f));
  const V sum = fma(V::broadcast(2.0f), s, tail);
  return fma(e, V::broadcast(0.693359375f), sum);
}

}  // namespace
}  // namespace uniproc::simd
