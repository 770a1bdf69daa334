// The operations of a mixture of experts on the CPU.
#pragma once

#include "base/thread_pool.h"
#include "ops/cpu/linear.h"
#include "ops/experts.h"

namespace uniproc {

class Experts {
 public:
  Experts(ThreadPool& pool, Linear& linear) : pool_(pool), linear_(linear) {}

  // As ExpertOps, with float32 activations.
  void routeTokens(const float* logits, const SoftmaxRouting& rule, const Routing& routing);
  // Multiplies all rows of one expert together; each row's result is independent of the others.
  void expertLinear(const float* x, int32_t rowsPerToken, const Routing& routing,
                    const LinearWeight& weight, float* out);
  void applyWeights(float* x, const Routing& routing, int32_t width);
  void sumExperts(const float* x, const Routing& routing, int32_t width, float* out);

 private:
  ThreadPool& pool_;
  Linear& linear_;
};

}  // namespace uniproc
