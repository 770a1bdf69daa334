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

class ExpertOps {
 public:
  virtual ~ExpertOps() = default;

  // Computes routing.expertIds and weights: the topK largest of softmax(logits [numTokens,
  // numExperts]) in float32 (the lower id first on ties), scaled to a sum of 1 if `normalize`.
  // `type` is the type of logits and activations. A NaN logit ranks lowest and makes all weights of
  // its token NaN, as softmax does, so that the token's request fails.
  virtual void routeTokens(const void* logits, bool normalize, const Routing& routing,
                           DType type) = 0;

  // out [numTokens * topK, rows] of type `type`: row i is its input row times the matrix of expert
  // expertIds[i], or zeros if this rank does not hold that expert. x is [numTokens * rowsPerToken,
  // cols], rowsPerToken being 1 or topK; row i of out reads row i / (topK / rowsPerToken) of x.
  // weight [numLocal * rows, cols] stacks the local experts' matrices.
  virtual void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                            const LinearWeight& weight, void* out, DType type) = 0;

  // out [numTokens, width] = weighted sum of x [numTokens, topK, width] over each token's experts.
  // The weights are rounded to `type` first.
  virtual void sumExperts(const void* x, const Routing& routing, int32_t width, void* out,
                          DType type) = 0;
};

}  // namespace uniproc
