#include "ops/cpu/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/cpu/parallel_rows.h"

namespace uniproc {
namespace {

constexpr float kTiny = 1e-20f;  // of the sum that normalizes, as in DeepSeek-V3

// The indices of the `count` largest scores, the lower one first on ties.
std::vector<int32_t> largest(const std::vector<float>& scores, int32_t count) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  });
  order.resize(static_cast<size_t>(count));
  return order;
}

// Sets the scores of all groups but the best ones to -infinity.
void keepBestGroups(const SigmoidRouting& rule, std::vector<float>& scores) {
  const size_t size = scores.size() / static_cast<size_t>(rule.numGroups);
  std::vector<float> sums;
  for (size_t group = 0; group < scores.size(); group += size) {
    float first = -std::numeric_limits<float>::infinity();
    float second = first;
    for (size_t i = group; i < group + size; ++i) {
      second = std::max(second, std::min(first, scores[i]));
      first = std::max(first, scores[i]);
    }
    sums.push_back(size > 1 ? first + second : first);
  }
  std::vector<bool> isKept(sums.size());
  for (const int32_t group : largest(sums, rule.numChosenGroups)) isKept[group] = true;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!isKept[i / size]) scores[i] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

void routeTokensBySigmoid(ThreadPool& pool, const float* logits, const SigmoidRouting& rule,
                          const Routing& routing) {
  const int32_t numExperts = routing.numExperts;
  const int32_t topK = routing.topK;
  pool.parallelFor(
      routing.numTokens, minRowsPerPart(numExperts), [&](int64_t begin, int64_t end, int) {
        std::vector<float> scores(static_cast<size_t>(numExperts));
        for (int64_t token = begin; token < end; ++token) {
          const float* row = logits + token * numExperts;
          const auto score = [row](int32_t id) { return 1.0f / (1.0f + std::exp(-row[id])); };
          bool hasNan = false;
          for (int32_t id = 0; id < numExperts; ++id) {
            hasNan |= std::isnan(row[id]);
            if (std::isnan(row[id])) {
              scores[id] = -std::numeric_limits<float>::max();
            } else if (rule.isByLogits()) {
              scores[id] = row[id];
            } else {
              scores[id] = score(id) + (rule.bias ? rule.bias[id] : 0.0f);
            }
          }
          if (rule.numChosenGroups < rule.numGroups) keepBestGroups(rule, scores);
          const std::vector<int32_t> chosen = largest(scores, topK);
          float sum = hasNan ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
          for (const int32_t id : chosen) sum += score(id);
          const float divisor = rule.normalize ? sum + kTiny : hasNan ? sum : 1.0f;
          for (int32_t i = 0; i < topK; ++i) {
            routing.expertIds[token * topK + i] = chosen[i];
            routing.weights[token * topK + i] = score(chosen[i]) / divisor * rule.scale;
          }
        }
      });
}

}  // namespace uniproc
