// What a request's parameters do to a row of logits before a token is chosen, in vLLM's order:
// bitmask, allowed tokens, bad words and early stop tokens, logit bias, penalties.
//
// A block processes one part of the row on its own: it walks the request's lists and history and
// picks what falls into its range of token ids. Nothing depends on the order of threads.
//
// In here a forbidden token's logit is NaN, which tells it from an impossible one's, -inf. All else
// is finite: clean logits have no NaN, and limitLogit lets none come up.
#pragma once

#include "ops/cuda/sampling.cuh"
#include "ops/logits.h"

namespace uniproc::cuda {

// A row's request.
struct SampledRequest {
  const SamplingParams& params;
  const int32_t* tokenIds;  // prompt, then generated
  int32_t numPromptTokens;
  int32_t numTokens;

  __device__ int32_t numGenerated() const { return numTokens - numPromptTokens; }
  __device__ bool bansStopTokens() const {
    return params.numStopTokenIds > 0 && numGenerated() < params.minTokens;
  }
  __device__ bool hasPenalties() const {
    return params.presencePenalty != 0.0f || params.frequencyPenalty != 0.0f ||
           params.repetitionPenalty != 1.0f;
  }
};

class LogitsProcessors {
 public:
  struct Shared {
    alignas(16) float logits[kPartSize];
    alignas(16) uint32_t marks[kPartSize];
    Key keys[kPartThreads / kWarpSize];
  };

  // For the ids from `begin` on of a row with `vocabSize`. `bitmask`: the row's, or null.
  __device__ LogitsProcessors(const SampledRequest& request, const int32_t* bitmask, int32_t begin,
                              int32_t vocabSize, Shared& shared)
      : request_(request),
        bitmask_(bitmask),
        begin_(begin),
        size_(min(kPartSize, vocabSize - begin)),
        shared_(shared) {}

  struct Result {
    // The likeliest of the part's tokens that applyBans banned, by the raw logit: every thread's.
    Key bannedBest = kNoKey;
    // The lowest of the thread's permitted tokens with -inf. Below the key of any possible token.
    Key impossible = kNoKey;
  };

  // Processes the thread's logits: a token that must not be sampled has -inf then.
  __device__ Result run(float (&logits)[kGroups][kGroupSize]) {
    Result result;
    result.bannedBest = applyAll(logits);
    // From the highest id to the lowest.
#pragma unroll
    for (int j = kGroups - 1; j >= 0; --j) {
#pragma unroll
      for (int e = kGroupSize - 1; e >= 0; --e) {
        const int32_t offset = groupOffset(j) + e;
        if (logits[j][e] == -INFINITY && offset < size_) {
          result.impossible = keyOf(-INFINITY, begin_ + offset);
        }
        logits[j][e] = fmaxf(logits[j][e], -INFINITY);
      }
    }
    return result;
  }

 private:
  // Returns the best of the banned tokens.
  __device__ Key applyAll(float (&logits)[kGroups][kGroupSize]) {
    applyBitmask(logits);
    const SamplingParams& params = request_.params;
    const bool hasBans = params.numBadWords > 0 || request_.bansStopTokens();
    Key bannedBest = kNoKey;
    if (params.numAllowedTokenIds > 0) applyAllowedTokens(logits);
    if (hasBans || params.numLogitBiases > 0) {
      share(logits);
      if (hasBans) bannedBest = applyBans();
      applyLogitBias();
      takeBack(logits);
    }
    if (request_.hasPenalties()) applyPenalties(logits);
    return bannedBest;
  }

  __device__ bool isInPart(int32_t offset) const { return offset >= 0 && offset < size_; }

  // visit(offset in the part) for those of the list's ids that are in it, the list divided among
  // the threads.
  template <class Visit>
  __device__ void forEachInPart(const int32_t* ids, int32_t count, Visit visit) const {
    for (auto i = static_cast<int32_t>(threadIdx.x); i < count; i += kPartThreads) {
      const int32_t offset = ids[i] - begin_;
      if (isInPart(offset)) visit(offset);
    }
  }

  __device__ void applyBitmask(float (&logits)[kGroups][kGroupSize]) const {
    if (!bitmask_) return;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int32_t offset = groupOffset(j);
      if (offset >= size_) continue;
      const int32_t id = begin_ + offset;
      const uint32_t bits = static_cast<uint32_t>(bitmask_[id / 32]) >> (id % 32);
#pragma unroll
      for (int e = 0; e < kGroupSize; ++e) {
        if (!(bits >> e & 1)) logits[j][e] = NAN;
      }
    }
  }

  __device__ void clearMarks() {
    __syncthreads();
    for (int j = 0; j < kGroups; ++j) {
      *reinterpret_cast<uint4*>(shared_.marks + groupOffset(j)) = uint4{0, 0, 0, 0};
    }
    __syncthreads();
  }

  __device__ void applyAllowedTokens(float (&logits)[kGroups][kGroupSize]) {
    const SamplingParams& params = request_.params;
    clearMarks();
    forEachInPart(params.allowedTokenIds, params.numAllowedTokenIds,
                  [&](int32_t offset) { shared_.marks[offset] = 1; });
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int e = 0; e < kGroupSize; ++e) {
        if (shared_.marks[groupOffset(j) + e] == 0) logits[j][e] = NAN;
      }
    }
  }

  // The logits into shared memory, where any thread can reach them.
  __device__ void share(const float (&logits)[kGroups][kGroupSize]) {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) storeNarrowed(shared_.logits + groupOffset(j), logits[j]);
    __syncthreads();
  }
  __device__ void takeBack(float (&logits)[kGroups][kGroupSize]) const {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      loadWidened<kGroupSize>(shared_.logits + groupOffset(j), logits[j]);
    }
  }

  // visit(offset) for bad words whose beginning was just generated, and stop tokens before
  // minTokens.
  template <class Visit>
  __device__ void forEachBan(Visit visit) const {
    const SamplingParams& params = request_.params;
    for (auto i = static_cast<int32_t>(threadIdx.x); i < params.numBadWords; i += kPartThreads) {
      const int32_t start = i == 0 ? 0 : params.badWordsEnds[i - 1];
      const int32_t numBefore = params.badWordsEnds[i] - start - 1;
      if (numBefore < 0 || numBefore > request_.numGenerated()) continue;
      const int32_t* word = params.badWordsTokenIds + start;
      const int32_t offset = word[numBefore] - begin_;
      if (!isInPart(offset)) continue;
      const int32_t* tail = request_.tokenIds + request_.numTokens - numBefore;
      int32_t numEqual = 0;
      while (numEqual < numBefore && word[numEqual] == tail[numEqual]) ++numEqual;
      if (numEqual == numBefore) visit(offset);
    }
    if (request_.bansStopTokens()) {
      forEachInPart(params.stopTokenIds, params.numStopTokenIds, visit);
    }
  }

  __device__ Key applyBans() {
    Key best = kNoKey;
    forEachBan([&](int32_t offset) {
      const float logit = shared_.logits[offset];
      if (!isnan(logit)) best = max(best, keyOf(logit, begin_ + offset));
    });
    best = blockMax(best, kNoKey, shared_.keys);  // all have read before any writes
    forEachBan([&](int32_t offset) { shared_.logits[offset] = NAN; });
    __syncthreads();
    return best;
  }

  // The list is divided among the threads: an id is there once, so that no two write one logit.
  __device__ void applyLogitBias() {
    const SamplingParams& params = request_.params;
    for (auto i = static_cast<int32_t>(threadIdx.x); i < params.numLogitBiases; i += kPartThreads) {
      const int32_t offset = params.logitBiasTokenIds[i] - begin_;
      if (!isInPart(offset)) continue;
      float& logit = shared_.logits[offset];
      if (logit > -INFINITY) logit = limitLogit(logit + params.logitBiases[i]);
    }
    __syncthreads();
  }

  // Repetition (Keskar et al. 2019) of what is in prompt or generated, frequency and presence of
  // what is generated. A mark is the number of times a token was generated, with the upper bit set
  // if it is in the prompt.
  __device__ void applyPenalties(float (&logits)[kGroups][kGroupSize]) {
    constexpr uint32_t kInPrompt = 0x80000000u;
    const SamplingParams& params = request_.params;
    clearMarks();
    if (params.repetitionPenalty != 1.0f) {
      forEachInPart(request_.tokenIds, request_.numPromptTokens,
                    [&](int32_t offset) { atomicOr(shared_.marks + offset, kInPrompt); });
    }
    forEachInPart(request_.tokenIds + request_.numPromptTokens, request_.numGenerated(),
                  [&](int32_t offset) { atomicAdd(shared_.marks + offset, 1u); });
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int e = 0; e < kGroupSize; ++e) {
        const uint32_t mark = shared_.marks[groupOffset(j) + e];
        float& logit = logits[j][e];
        if (mark == 0 || !(logit > -INFINITY)) continue;
        const uint32_t times = mark & ~kInPrompt;
        // No product may be fused with a difference: every step is rounded, as on the CPU.
        logit = limitLogit(logit > 0 ? logit / params.repetitionPenalty
                                     : __fmul_rn(logit, params.repetitionPenalty));
        if (times == 0) continue;
        const float frequency = __fmul_rn(params.frequencyPenalty, static_cast<float>(times));
        logit = limitLogit(__fsub_rn(logit, frequency));
        logit = limitLogit(__fsub_rn(logit, params.presencePenalty));
      }
    }
  }

  const SampledRequest& request_;
  const int32_t* bitmask_;
  int32_t begin_;
  int32_t size_;
  Shared& shared_;
};

}  // namespace uniproc::cuda
