// Applies a request's parameters to a row of logits before sampling, in vLLM's order: bitmask,
// allowed tokens, bad words and early stop tokens, logit bias, penalties.
//
// A block processes one part of the row: it walks the request's lists and history and applies the
// entries in its range of token ids. No result depends on the order of threads.
//
// Here a forbidden token's logit is NaN, to tell it from an impossible token's -inf. All others are
// finite: clean logits have no NaN, and limitLogit prevents new ones.
#pragma once

#include "ops/cuda/sampling.cuh"
#include "ops/logits.h"

namespace uniproc::cuda {

// The request of a row.
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

  // Processes ids from `begin` on of a row of `vocabSize` logits. `bitmask`: the row's, or null.
  __device__ LogitsProcessors(const SampledRequest& request, const int32_t* bitmask, int32_t begin,
                              int32_t vocabSize, Shared& shared)
      : request_(request),
        bitmask_(bitmask),
        begin_(begin),
        size_(min(kPartSize, vocabSize - begin)),
        shared_(shared) {}

  struct Result {
    // The key of the part's most probable banned token, by raw logit; the same in every thread.
    Key bannedBest = kNoKey;
    // The key of the thread's lowest permitted token with -inf; below any possible token's key.
    Key impossible = kNoKey;
  };

  // Processes the thread's logits; forbidden tokens become -inf.
  __device__ Result run(float (&logits)[kGroups][kGroupSize]) {
    Result result;
    result.bannedBest = applyAll(logits);
    // Highest id first.
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
  // Returns the key of the best banned token.
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

  // Divides the list among the threads and calls visit(offset) for ids in this part.
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

  // Copies the logits to shared memory, for access by all threads.
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

  // Calls visit(offset) for the last token of bad words whose other tokens were just generated, and
  // for stop tokens before minTokens.
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

  // The list is divided among the threads. Its ids are unique, so no two threads write one logit.
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

  // Repetition penalty (Keskar et al. 2019) on tokens of prompt and output, frequency and presence
  // penalties on output tokens. A mark counts a token's occurrences in the output; its upper bit is
  // set if the token is in the prompt.
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
        // __fmul_rn prevents fused multiply-add: every step is rounded, as on the CPU.
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
