#include "ops/cpu/rows.h"

#include <cmath>
#include <vector>

namespace uniproc {
namespace {

constexpr float kInverseRoot2 = 0.70710678f;  // 1 / sqrt(2)
constexpr float kRoot2OverPi = 0.79788456f;   // sqrt(2 / pi)

// The columns of q (0) or k (1) in a row of qkv: [first, first + width).
struct Columns {
  int64_t first;
  int64_t width;

  Columns(const AttentionShape& shape, int projection)
      : first(projection == 0 ? 0 : int64_t{shape.numHeads} * shape.headDim),
        width(int64_t{projection == 0 ? shape.numHeads : shape.numKvHeads} * shape.headDim) {}
};

int64_t rowWidth(const AttentionShape& shape) {
  return int64_t{shape.numHeads + 2 * shape.numKvHeads} * shape.headDim;
}

// Activation::kClampedSwiglu, with comparisons that keep NaN.
float clampedSwiglu(float gate, float up) {
  gate = gate > kSwigluLimit ? kSwigluLimit : gate;
  up = up > kSwigluLimit ? kSwigluLimit : up < -kSwigluLimit ? -kSwigluLimit : up;
  return gate / (1.0f + std::exp(-kSwigluAlpha * gate)) * (up + 1.0f);
}

}  // namespace

void addTo(float* x, const float* y, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) x[i] += y[i];
}

void addGatedRows(const float* x, const float* gate, int64_t begin, int64_t end, int64_t width,
                  float* out) {
  for (int64_t row = begin; row < end; ++row) {
    const float weight = 1.0f / (1.0f + std::exp(-gate[row]));
    for (int64_t i = row * width; i < (row + 1) * width; ++i) out[i] += weight * x[i];
  }
}

void activateAndMulRow(const float* gate, const float* up, int64_t size, Activation activation,
                       float* out) {
  const auto gelu = [&](auto shareOf) {
    for (int64_t i = 0; i < size; ++i) out[i] = 0.5f * gate[i] * (1.0f + shareOf(gate[i])) * up[i];
  };
  if (activation == Activation::kGelu) {
    gelu([](float x) { return std::erf(x * kInverseRoot2); });
  } else if (activation == Activation::kGeluTanh) {
    gelu([](float x) { return std::tanh(kRoot2OverPi * (x + 0.044715f * x * x * x)); });
  } else {
    for (int64_t i = 0; i < size; ++i) out[i] = clampedSwiglu(gate[i], up[i]);
  }
}

void scaleQueryRows(float* qkv, int64_t begin, int64_t end, const int32_t* positions,
                    const AttentionShape& shape, const ForwardOps::Temperature& temperature) {
  const auto& [beta, period, shift] = temperature;
  const int64_t width = int64_t{shape.numHeads} * shape.headDim;
  for (int64_t row = begin; row < end; ++row) {
    const float periods = std::floor((static_cast<float>(positions[row]) + shift) / period);
    const float factor = 1.0f + beta * std::log(1.0f + periods);
    float* x = qkv + row * rowWidth(shape);
    for (int64_t i = 0; i < width; ++i) x[i] *= factor;
  }
}

void normValueRows(float* qkv, int64_t begin, int64_t end, const AttentionShape& shape, float eps) {
  for (int64_t row = begin; row < end; ++row) {
    for (int32_t head = 0; head < shape.numKvHeads; ++head) {
      const int64_t first = shape.numHeads + shape.numKvHeads + head;
      float* x = qkv + row * rowWidth(shape) + first * shape.headDim;
      double sum = 0.0;
      for (int32_t i = 0; i < shape.headDim; ++i) sum += double{x[i]} * double{x[i]};
      const auto factor = static_cast<float>(1.0 / std::sqrt(sum / shape.headDim + double{eps}));
      for (int32_t i = 0; i < shape.headDim; ++i) x[i] *= factor;
    }
  }
}

void sumSquaresRows(const float* qkv, int64_t begin, int64_t end, const AttentionShape& shape,
                    float* sums) {
  for (int64_t row = begin; row < end; ++row) {
    for (int projection = 0; projection < 2; ++projection) {
      const Columns columns(shape, projection);
      const float* x = qkv + row * rowWidth(shape) + columns.first;
      double sum = 0.0;
      for (int64_t i = 0; i < columns.width; ++i) sum += double{x[i]} * double{x[i]};
      sums[2 * row + projection] = static_cast<float>(sum);
    }
  }
}

void normProjectionRows(float* qkv, int64_t begin, int64_t end, const AttentionShape& shape,
                        const ForwardOps::ProjectionNorm& norm,
                        void (*widen)(const void* x, int64_t count, float* out)) {
  for (int projection = 0; projection < 2; ++projection) {
    const Columns columns(shape, projection);
    std::vector<float> weight(static_cast<size_t>(columns.width));
    widen((projection == 0 ? norm.q : norm.k).data, columns.width, weight.data());
    const auto count = static_cast<float>(projection == 0 ? norm.qWidth : norm.kWidth);
    for (int64_t row = begin; row < end; ++row) {
      float* x = qkv + row * rowWidth(shape) + columns.first;
      const float factor = 1.0f / std::sqrt(norm.sums[2 * row + projection] / count + norm.eps);
      for (int64_t i = 0; i < columns.width; ++i) x[i] = x[i] * factor * weight[i];
    }
  }
}

}  // namespace uniproc
