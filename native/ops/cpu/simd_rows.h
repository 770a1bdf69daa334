// Element-wise operations and reductions on a row of activations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/cpu/simd_math.h"

namespace uniproc::simd {
// Each source its own, for its instructions.
namespace {

template <class V, class T>
void widenRow(const void* x, int64_t count, float* out) {
  const T* from = static_cast<const T*>(x);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::load(from + i).store(out + i);
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    V::loadPartial(from + i, rest).storePartial(out + i, rest);
  }
}

template <class V, class T>
void narrowRow(const float* x, int64_t count, void* out) {
  T* to = static_cast<T*>(out);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::load(x + i).store(to + i);
  for (; i < count; ++i) to[i] = narrow<T>(x[i]);
}

template <class V>
void scaleRow(float* x, int64_t count, float factor) {
  const V f = V::broadcast(factor);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) (V::load(x + i) * f).store(x + i);
  for (; i < count; ++i) x[i] *= factor;
}

// tanh(y) = 1 - 2 / (1 + e^2y).
template <class V>
void softcapRow(float* x, int64_t count, float cap) {
  const V one = V::broadcast(1.0f);
  const V two = V::broadcast(2.0f);
  const V inner = V::broadcast(2.0f / cap);
  const V outer = V::broadcast(cap);
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kLanes, count - i));
    const V y = exp(V::loadPartial(x + i, lanes) * inner);
    (outer * (one - two / (one + y))).storePartial(x + i, lanes);
  }
}

template <class V, class T>
void rmsNormRow(const float* x, float* residual, int64_t size, const void* weight, float offset,
                float eps, float* out) {
  V squares[4] = {V::zero(), V::zero(), V::zero(), V::zero()};  // in turn: an fma takes 4 cycles
  int64_t i = 0;
  for (int turn = 0; i < size; i += V::kLanes, turn = (turn + 1) % 4) {
    const int rest = static_cast<int>(std::min<int64_t>(V::kLanes, size - i));
    V value = V::loadPartial(residual + i, rest);
    if (x) {
      value = value + V::loadPartial(x + i, rest);
      value.storePartial(residual + i, rest);
    }
    squares[turn] = fma(value, value, squares[turn]);
  }
  const float sum = sumLanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const V factor = V::broadcast(1.0f / std::sqrt(sum / static_cast<float>(size) + eps));
  const V added = V::broadcast(offset);
  const T* w = static_cast<const T*>(weight);
  for (i = 0; i + V::kLanes <= size; i += V::kLanes) {
    (V::load(residual + i) * factor * (V::load(w + i) + added)).store(out + i);
  }
  if (i < size) {
    const int rest = static_cast<int>(size - i);
    const V scale = V::loadPartial(w + i, rest) + added;
    (V::loadPartial(residual + i, rest) * factor * scale).storePartial(out + i, rest);
  }
}

template <class V>
void rotateRow(float* x, const float* cos, const float* sin, int64_t half) {
  float* y = x + half;
  for (int64_t i = 0; i < half; i += V::kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kLanes, half - i));
    const V a = V::loadPartial(x + i, lanes);
    const V b = V::loadPartial(y + i, lanes);
    const V c = V::loadPartial(cos + i, lanes);
    const V s = V::loadPartial(sin + i, lanes);
    (a * c - b * s).storePartial(x + i, lanes);
    (b * c + a * s).storePartial(y + i, lanes);
  }
}

template <class V>
void siluAndMulRow(const float* gate, const float* up, int64_t size, float* out) {
  const V one = V::broadcast(1.0f);
  for (int64_t i = 0; i < size; i += V::kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kLanes, size - i));
    const V g = V::loadPartial(gate + i, lanes);
    const V u = V::loadPartial(up + i, lanes);
    (g / (one + exp(V::zero() - g)) * u).storePartial(out + i, lanes);
  }
}

template <class V>
float softmaxStepRow(float* scores, int64_t count, float* max, float* sum) {
  V largest = V::broadcast(*max);
  for (int64_t i = 0; i < count; i += V::kLanes) largest = V::max(V::load(scores + i), largest);
  const float newMax = maxLanes(largest);
  const V shift = V::broadcast(newMax);
  V total = V::zero();
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const V p = exp(V::load(scores + i) - shift);
    p.store(scores + i);
    total = total + p;
  }
  float factor[V::kLanes];
  exp(V::broadcast(*max) - shift).store(factor);
  *sum = *sum * factor[0] + sumLanes(total);
  *max = newMax;
  return factor[0];
}

}  // namespace
}  // namespace uniproc::simd
