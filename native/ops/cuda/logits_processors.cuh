// What a request's parameters do to a row of logits before a token is chosen, in vLLM's order:
// bitmask, allowed tokens, bad words and early stop tokens, logit bias, penalties.
//
// A block processes one part of the row on its own: it walks the request's lists and history and
// picks what falls into its range of token ids. Nothing depends on the order of threads.
#pragma once

#include "ops/cuda/sampling.cuh"

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

  // Processes the thread's logits. Returns the likeliest of the part's tokens that applyBans
  // banned, by the logit before, to every thread.
  __device__ Key run(float (&logits)[kGroups][kGroupSize]) {
    applyBitmask(logits);
    const SamplingParams& params = request_.params;
    const bool hasBans = params.numBadWords > 0 || request_.bansStopTokens();
    const bool hasPenalties = request_.hasPenalties();
    if (params.numAllowedTokenIds == 0 && !hasBans && params.numLogitBiases == 0 && !hasPenalties) {
      return kNoKey;
    }
    Key bannedBest = kNoKey;
    if (params.numAllowedTokenIds > 0) applyAllowedTokens(logits);
    if (hasBans || params.numLogitBiases > 0) {
      share(logits);
      if (hasBans) bannedBest = applyBans();
      applyLogitBias();
      takeBack(logits);
    }
    if (hasPenalties) applyPenalties(logits);
    return bannedBest;
  }

 private:
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
        if (!(bits >> e & 1)) logits[j][e] = -INFINITY;
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
        if (shared_.marks[groupOffset(j) + e] == 0) logits[j][e] = -INFINITY;
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
      if (logit > -INFINITY) best = max(best, keyOf(logit, begin_ + offset));
    });
    best = blockMax(best, kNoKey, shared_.keys);  // all have read before any writes
    forEachBan([&](int32_t offset) { shared_.logits[offset] = -INFINITY; });
    __syncthreads();
    return best;
  }

  // Every thread walks the whole list and adds what falls to its own logits: in the list's order,
  // should an id be there twice.
  __device__ void applyLogitBias() {
    const SamplingParams& params = request_.params;
    for (int32_t i = 0; i < params.numLogitBiases; ++i) {
      const int32_t offset = params.logitBiasTokenIds[i] - begin_;
      const bool isOwn = offset / kGroupSize % kPartThreads == static_cast<int32_t>(threadIdx.x);
      if (isInPart(offset) && isOwn) shared_.logits[offset] += params.logitBiases[i];
    }
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
        if (mark == 0) continue;
        const uint32_t times = mark & ~kInPrompt;
        float logit = logits[j][e];
        // No product may be fused with a difference: every step is rounded, as on the CPU.
        logit = logit > 0 ? logit / params.repetitionPenalty
                          : __fmul_rn(logit, params.repetitionPenalty);
        logit -= __fmul_rn(params.frequencyPenalty, static_cast<float>(times));
        if (times > 0) logit -= params.presencePenalty;
        logits[j][e] = logit;
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
