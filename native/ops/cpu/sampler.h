#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/logprobs.h"
#include "ops/ops.h"

namespace uniproc {

// Samples tokens from rows of logits in vLLM's order; see SamplingOps. Forbidden and impossible
// tokens have the logit -inf.
class Sampler {
 public:
  Sampler(ThreadPool& pool, const Kernels& kernels);

  void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
              const RequestTable& requests, const int32_t* bitmask, int32_t* sampled,
              int32_t* numNans, const Logprobs& logprobs);
  void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                      const int32_t* tokenIds, int32_t numTop, int32_t* numNans,
                      const Logprobs& out);

 private:
  // A thread's scratch for one row, kept between steps.
  struct Scratch {
    std::vector<float> rawLogits;
    std::vector<Candidate> candidates;
    std::vector<Candidate> banned;  // with the logits before the ban
    std::vector<float> allowedLogits;
    std::vector<int32_t> counts;  // [vocabSize], zero between rows

    // Returns at least vocabSize zeros.
    int32_t* zeroCounts(int32_t vocabSize) {
      counts.resize(std::max(counts.size(), static_cast<size_t>(vocabSize)));
      return counts.data();
    }
  };
  struct Row;

  int32_t sampleRow(const Row& row, Scratch& scratch) const;
  void applyBitmask(const Row& row) const;
  void applyAllowedTokens(const Row& row, Scratch& scratch) const;
  void applyBans(const Row& row, Scratch& scratch) const;
  void applyLogitBias(const Row& row) const;
  void applyPenalties(const Row& row, Scratch& scratch) const;
  int32_t argMax(const Row& row, float max) const;
  int32_t chooseImpossible(const Row& row, Scratch& scratch) const;
  int32_t lowestPermitted(const Row& row, const int32_t* isBanned) const;
  void gatherNucleus(const Row& row, float max, Scratch& scratch) const;
  int32_t drawFromAll(const Row& row) const;
  int32_t drawFrom(const Row& row, const std::vector<Candidate>& candidates) const;

  ThreadPool& pool_;
  const Kernels& kernels_;
  std::vector<Scratch> scratches_;
};

}  // namespace uniproc
