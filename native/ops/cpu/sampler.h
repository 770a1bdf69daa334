// Sampling: from a row of logits to a token, in vLLM's order.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/cpu/kernels.h"
#include "ops/cpu/logprobs.h"
#include "ops/cpu/thread_pool.h"
#include "ops/ops.h"

namespace uniproc {

// As Ops::sample and Ops::gatherLogprobs. What they do not say:
//
// - A NaN logit counts as -inf, +inf as the largest float.
// - A token with a probability of exactly topP or minP times the largest is kept; at least one
// token
//   always is.
// - Where bad words and stop tokens would leave nothing of what bitmask and allowed tokens permit,
//   they are lifted, and the token is the arg max of the logits so permitted. Where those permit
//   only tokens with a logit of -inf, it is the lowest id permitted; where they permit none, 0.
class Sampler {
 public:
  Sampler(ThreadPool& pool, const Kernels& kernels);

  void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
              const RequestTable& requests, const int32_t* bitmask, int32_t* sampled,
              const Logprobs& logprobs);
  void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                      const int32_t* tokenIds, int32_t numTop, const Logprobs& out);

 private:
  // What a thread needs for a row, kept between steps.
  struct Scratch {
    std::vector<float> rawLogits;
    std::vector<Candidate> candidates;
    std::vector<Candidate> banned;  // and their logits before
    std::vector<float> allowedLogits;
    std::vector<int32_t> counts;  // [vocabSize], zero between rows
  };
  struct Row;

  int32_t sampleRow(const Row& row, Scratch& scratch) const;
  void applyBitmask(const Row& row) const;
  void applyAllowedTokens(const Row& row, Scratch& scratch) const;
  void applyBans(const Row& row, Scratch& scratch) const;
  void applyLogitBias(const Row& row) const;
  void applyPenalties(const Row& row, Scratch& scratch) const;
  int32_t argMax(const Row& row, float max) const;
  int32_t liftBans(const Row& row, const Scratch& scratch) const;
  int32_t lowestPermitted(const Row& row) const;
  void gatherNucleus(const Row& row, float max, Scratch& scratch) const;
  int32_t drawFromAll(const Row& row) const;
  int32_t drawFrom(const Row& row, const std::vector<Candidate>& candidates) const;

  ThreadPool& pool_;
  const Kernels& kernels_;
  std::vector<Scratch> scratches_;
};

}  // namespace uniproc
