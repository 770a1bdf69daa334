#pragma once

#include <cstdint>

#include "base/types.h"
#include "ops/linear.h"

namespace uniproc {

// The experts of each token of a batch. This rank holds experts [firstLocal, firstLocal +
// numLocal).
struct Routing {
  int32_t numTokens = 0;
  int32_t numExperts = 0;
  int32_t topK = 0;
  int32_t firstLocal = 0;
  int32_t numLocal = 0;
  int32_t* expertIds = nullptr;  // [numTokens, topK], global ids, most probable first
  float* weights = nullptr;      // [numTokens, topK]

  int32_t numRows() const { return numTokens * topK; }
};

// The gated MLPs of this rank's experts.
struct ExpertMlp {
  const LinearWeight& gateUp;  // [numLocal * 2 * intermediateSize, hiddenSize]
  const LinearWeight& down;    // [numLocal * hiddenSize, intermediateSize]
  Activation activation;
};

// A router that scores the experts by the softmax of their logits.
struct SoftmaxRouting {
  bool normalize = false;  // the weights are scaled to a sum of 1
  // [numExperts], float32, or null: the weight of each expert is multiplied by its own, after that
  // (Gemma 4).
  const float* expertScales = nullptr;
};

// A router that scores each expert by the sigmoid of its logit (DeepSeek-AI 2024, DeepSeek-V3).
struct SigmoidRouting {
  // [numExperts], float32, or null: added to the scores by which experts are chosen, but not to
  // their weights.
  const float* bias = nullptr;
  // Experts are in `numGroups` groups of adjacent ones. A token's experts are from the
  // `numChosenGroups` groups with the largest sums of their two largest scores.
  int32_t numGroups = 1;
  int32_t numChosenGroups = 1;
  bool normalize = false;  // the weights are scaled to a sum of 1, before
  float scale = 1.0f;      // they are multiplied by `scale`

  // Experts are chosen by their logits (Llama 4), in the order of the sigmoids, which in float32
  // are equal for large logits.
  constexpr bool isByLogits() const { return !bias && numChosenGroups == numGroups; }
};

class ExpertOps {
 public:
  virtual ~ExpertOps() = default;

  // Computes routing.expertIds and weights: the topK largest of softmax(logits [numTokens,
  // numExperts]) in float32 (the lower id first on ties), scaled as the rule says. `type` is the
  // type of logits. A NaN logit ranks lowest and makes all weights of
  // its token NaN, as softmax does, so that the token's request fails.
  virtual void routeTokens(const void* logits, const SoftmaxRouting& rule, const Routing& routing,
                           DType type) = 0;

  // The same by sigmoids of logits [numTokens, numExperts], float32. Lower ids first on ties, also
  // of groups; NaN as above.
  virtual void routeTokensBySigmoid(const float* logits, const SigmoidRouting& rule,
                                    const Routing& routing) = 0;

  // out [numTokens * topK, rows] of type `type`: row i is its input row times the matrix of expert
  // expertIds[i], or zeros if this rank does not hold that expert. x is [numTokens * rowsPerToken,
  // cols], rowsPerToken being 1 or topK; row i of out reads row i / (topK / rowsPerToken) of x.
  // weight [numLocal * rows, cols] stacks the local experts' matrices, weight.bias [numLocal *
  // rows] or null their biases.
  virtual void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                            const LinearWeight& weight, void* out, DType type) = 0;

  // In place on x [numTokens, width] of type `type`: times the weight of each token's expert, which
  // becomes 1 (Llama 4). Requires routing.topK 1.
  virtual void applyWeights(void* x, const Routing& routing, int32_t width, DType type) = 0;

  // out [numTokens, width] = weighted sum of x [numTokens, topK, width] over each token's experts
  // that this rank holds, in the order of expertIds.
  // The weights are rounded to `type` first.
  virtual void sumExperts(const void* x, const Routing& routing, int32_t width, void* out,
                          DType type) = 0;
};

}  // namespace uniproc
