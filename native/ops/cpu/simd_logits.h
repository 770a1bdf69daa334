// Scans over rows of logits [vocabSize].
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "ops/cpu/simd_math.h"

namespace uniproc::simd {
// Each source its own, for its instructions.
namespace {

// Loads the incomplete last vector of a row, filled with -inf.
template <class V>
inline V loadEnd(const float* x, int64_t rest) {
  float lanes[V::kLanes];
  std::fill_n(lanes, V::kLanes, -std::numeric_limits<float>::infinity());
  std::copy_n(x, rest, lanes);
  return V::load(lanes);
}

template <class V>
int64_t cleanLogits(const float* logits, int64_t count, float* out) {
  const V lowest = V::broadcast(-std::numeric_limits<float>::infinity());
  const V highest = V::broadcast(std::numeric_limits<float>::max());
  int64_t numNumbers = 0;  // lanes without NaN, including lanes past the end
  int64_t numLanes = 0;
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kLanes, count - i));
    const V logit = V::loadPartial(logits + i, lanes);
    numNumbers += std::popcount(notLess(logit, logit));
    numLanes += V::kLanes;
    // max returns its second operand for a NaN and a number.
    V::min(V::max(logit, lowest), highest).storePartial(out + i, lanes);
  }
  return numLanes - numNumbers;
}

template <class V>
float maxLogit(const float* logits, int64_t count) {
  V largest = V::broadcast(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) largest = V::max(V::load(logits + i), largest);
  if (i < count) largest = V::max(loadEnd<V>(logits + i, count - i), largest);
  return maxLanes(largest);
}

template <class V>
double sumExp(const float* logits, int64_t count, float max) {
  constexpr int64_t kBlock = 64 * V::kLanes;  // elements summed in float32
  const V shift = V::broadcast(max);
  double sum = 0;
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t end = std::min(block + kBlock, count);
    V total = V::zero();
    int64_t i = block;
    for (; i + V::kLanes <= end; i += V::kLanes) total = total + exp(V::load(logits + i) - shift);
    if (i < end) total = total + exp(loadEnd<V>(logits + i, end - i) - shift);
    sum += sumLanes(total);
  }
  return sum;
}

template <class V>
int64_t countGreater(const float* logits, int64_t count, float threshold) {
  const V t = V::broadcast(threshold);
  int64_t n = 0;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes)
    n += std::popcount(greater(V::load(logits + i), t));
  if (i < count) n += std::popcount(greater(loadEnd<V>(logits + i, count - i), t));
  return n;
}

template <class V>
int64_t findGreater(const float* logits, int64_t begin, int64_t count, float threshold) {
  const V t = V::broadcast(threshold);
  int64_t i = begin;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    const uint32_t lanes = greater(V::load(logits + i), t);
    if (lanes != 0) return i + std::countr_zero(lanes);
  }
  while (i < count && !(logits[i] > threshold)) ++i;
  return i;
}

template <class V>
int64_t findNotLess(const float* logits, int64_t begin, int64_t count, float threshold) {
  const V t = V::broadcast(threshold);
  int64_t i = begin;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    const uint32_t lanes = notLess(V::load(logits + i), t);
    if (lanes != 0) return i + std::countr_zero(lanes);
  }
  while (i < count && !(logits[i] >= threshold)) ++i;
  return i;
}

template <class V>
void maskLess(float* logits, int64_t count, float threshold) {
  const V t = V::broadcast(threshold);
  const V lowest = V::broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kLanes, count - i));
    const V logit = V::loadPartial(logits + i, lanes);
    selectLess(logit, t, lowest, logit).storePartial(logits + i, lanes);
  }
}

template <class V>
void divideLogits(float* logits, int64_t count, float temperature) {
  const V t = V::broadcast(temperature);
  const V most = V::broadcast(std::numeric_limits<float>::max());
  const V least = V::broadcast(std::numeric_limits<float>::lowest());
  const V impossible = V::broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(V::kLanes, count - i));
    const V logit = V::loadPartial(logits + i, lanes);
    const V quotient = V::min(V::max(logit / t, least), most);
    selectLess(logit, least, impossible, quotient).storePartial(logits + i, lanes);
  }
}

template <class V>
void gumbel(const uint32_t* words, int64_t count, float* out) {
  const V half = V::broadcast(0.5f);
  const V scale = V::broadcast(0x1p-23f);
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const V u = (V::fromUpper23Bits(words + i) + half) * scale;  // as uniform() of philox.h
    const V e = V::zero() - log(u);
    (V::zero() - log(e)).store(out + i);
  }
}

}  // namespace
}  // namespace uniproc::simd
