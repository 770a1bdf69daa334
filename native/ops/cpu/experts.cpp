#include "ops/cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/cpu/parallel_rows.h"

namespace uniproc {

void Experts::routeTokens(const float* logits, const SoftmaxRouting& rule, const Routing& routing) {
  const int32_t numExperts = routing.numExperts;
  const int32_t topK = routing.topK;
  const auto minRows = minRowsPerPart(numExperts);
  pool_.parallelFor(routing.numTokens, minRows, [&](int64_t begin, int64_t end, int) {
    std::vector<int32_t> order(numExperts);
    for (int64_t token = begin; token < end; ++token) {
      const float* row = logits + token * numExperts;
      const auto logit = [row](int32_t id) { return std::isnan(row[id]) ? -INFINITY : row[id]; };
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + topK, order.end(),
                        [&](int32_t a, int32_t b) {
                          return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
                        });
      const float max = logit(order[0]);
      const auto numerator = [&](int32_t id) { return std::exp(logit(id) - max); };
      const bool hasNan =
          std::any_of(row, row + numExperts, [](float value) { return std::isnan(value); });
      float sum = hasNan ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      const int32_t numSummed = rule.normalize ? topK : numExperts;
      for (int32_t i = 0; i < numSummed; ++i) sum += numerator(rule.normalize ? order[i] : i);
      for (int32_t i = 0; i < topK; ++i) {
        routing.expertIds[token * topK + i] = order[i];
        const float scale = rule.expertScales ? rule.expertScales[order[i]] : 1.0f;
        routing.weights[token * topK + i] = numerator(order[i]) / sum * scale;
      }
    }
  });
}

void Experts::expertLinear(const float* x, int32_t rowsPerToken, const Routing& routing,
                           const LinearWeight& weight, float* out) {
  const int64_t rows = weight.rows / routing.numLocal;
  const int64_t cols = weight.cols;
  const int64_t outputsPerRow = routing.topK / rowsPerToken;
  std::vector<std::vector<int64_t>> outputs(routing.numLocal);  // by expert
  for (int64_t i = 0; i < routing.numRows(); ++i) {
    const int32_t expert = routing.expertIds[i] - routing.firstLocal;
    if (expert >= 0 && expert < routing.numLocal) {
      outputs[expert].push_back(i);
    } else {
      std::fill_n(out + i * rows, rows, 0.0f);
    }
  }
  std::vector<float> gathered;
  std::vector<float> results;
  for (int32_t expert = 0; expert < routing.numLocal; ++expert) {
    const std::vector<int64_t>& own = outputs[expert];
    const auto count = static_cast<int64_t>(own.size());
    if (count == 0) continue;
    gathered.resize(static_cast<size_t>(count * cols));
    results.resize(static_cast<size_t>(count * rows));
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(x + own[i] / outputsPerRow * cols, cols, gathered.data() + i * cols);
    }
    linear_.run(gathered.data(), count, weight.slice(expert * rows, rows), results.data());
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(results.data() + i * rows, rows, out + own[i] * rows);
    }
  }
}

void Experts::applyWeights(float* x, const Routing& routing, int32_t width) {
  const auto applyRows = [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = row * width; i < (row + 1) * width; ++i) x[i] *= routing.weights[row];
      routing.weights[row] = 1.0f;
    }
  };
  pool_.parallelFor(routing.numTokens, minRowsPerPart(width), applyRows);
}

void Experts::sumExperts(const float* x, const Routing& routing, int32_t width, float* out) {
  pool_.parallelFor(routing.numTokens, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      float* to = out + token * width;
      std::fill_n(to, width, 0.0f);
      for (int32_t k = 0; k < routing.topK; ++k) {
        const int64_t row = token * routing.topK + k;
        const float weight = routing.weights[row];
        for (int32_t i = 0; i < width; ++i) to[i] += x[row * width + i] * weight;
      }
    }
  });
}

}  // namespace uniproc
