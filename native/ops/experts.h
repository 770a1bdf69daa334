// The operations of a mixture of experts.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "ops/linear.h"

namespace uniproc {

// Which experts a batch's tokens go to. Of all experts this rank has `numLocal`, from `firstLocal`
// on.
struct Routing {
  int32_t numTokens = 0;
  int32_t numExperts = 0;
  int32_t topK = 0;
  int32_t firstLocal = 0;
  int32_t numLocal = 0;
  int32_t* expertIds = nullptr;  // [numTokens, topK], among all experts, the likeliest first
  float* weights = nullptr;      // [numTokens, topK]

  int32_t numRows() const { return numTokens * topK; }
};

class ExpertOps {
 public:
  virtual ~ExpertOps() = default;

  // Fills routing.expertIds and weights: the topK largest of softmax(logits [numTokens,
  // numExperts]), computed in float32 (of equals the lower id), scaled to a sum of 1 if
  // `normalize`. logits are of the activations' `type`. NaN among a token's logits counts as the
  // least, and makes all weights of that token NaN, as softmax does: its request has to fail.
  virtual void routeTokens(const void* logits, bool normalize, const Routing& routing,
                           DType type) = 0;

  // out [numTokens * topK, rows] of the activations' `type`: row i is the input's row times the
  // matrix of expert expertIds[i], zeros where this rank does not have that expert. The input x
  // [numTokens * rowsPerToken, cols]: row i of the output takes row i / (topK / rowsPerToken),
  // rowsPerToken being 1 or topK. weight [numLocal * rows, cols]: the experts one below the other.
  virtual void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                            const LinearWeight& weight, void* out, DType type) = 0;

  // out [numTokens, width] = the sum over a token's experts of x [numTokens, topK, width] times
  // their weights, of which each is rounded to the activations' `type` first.
  virtual void sumExperts(const void* x, const Routing& routing, int32_t width, void* out,
                          DType type) = 0;
};

}  // namespace uniproc
