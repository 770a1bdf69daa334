// Sampling: a token for each row of logits.
#pragma once

#include <cstdint>

#include "base/philox.h"

namespace uniproc {

struct RequestTable;

// One request's sampling parameters. Floats may have any float32 value, NaN and infinities
// included. The lists are device arrays owned by the backend's request table; null is an empty
// list. Their token ids are within the vocabulary.
struct SamplingParams {
  float temperature = 1.0f;  // below 1e-5 or NaN: greedy
  float topP = 1.0f;         // 1 and above, or NaN: all; 0 and below: the most probable token alone
  int32_t topK = 0;          // below 1: all
  float minP = 0.0f;         // 0 and below, or NaN: all; above 1 acts as 1
  float presencePenalty = 0.0f;
  float frequencyPenalty = 0.0f;
  float repetitionPenalty = 1.0f;
  uint64_t seed = 0;
  int32_t minTokens = 0;
  int32_t numLogprobs = -1;                    // alternatives to report; -1: no logprobs
  int32_t numPromptLogprobs = -1;              // the same for the prompt
  const int32_t* logitBiasTokenIds = nullptr;  // without duplicates
  const float* logitBiases = nullptr;
  int32_t numLogitBiases = 0;
  const int32_t* allowedTokenIds = nullptr;
  int32_t numAllowedTokenIds = 0;  // 0: all are allowed
  const int32_t* badWordsTokenIds = nullptr;
  const int32_t* badWordsEnds = nullptr;
  int32_t numBadWords = 0;
  const int32_t* stopTokenIds = nullptr;
  int32_t numStopTokenIds = 0;
};

constexpr float kMinTemperature = 1e-5f;  // lower temperatures are greedy

UNIPROC_HOST_DEVICE constexpr bool isGreedy(const SamplingParams& params) {
  return !(params.temperature >= kMinTemperature);
}
UNIPROC_HOST_DEVICE constexpr bool hasTopK(const SamplingParams& params, int32_t vocabSize) {
  return params.topK > 0 && params.topK < vocabSize;
}
UNIPROC_HOST_DEVICE constexpr bool hasTopP(const SamplingParams& params) {
  return params.topP < 1.0f;
}

// Whether the row draws from a subset of its tokens.
UNIPROC_HOST_DEVICE constexpr bool isTruncated(const SamplingParams& params, int32_t vocabSize) {
  return !isGreedy(params) && (params.minP > 0.0f || hasTopK(params, vocabSize) || hasTopP(params));
}

// Logprobs of `count` positions, each [1 + maxLogprobs] wide: the position's own token, then the
// most probable ones in descending order (the lower id first on ties). Raw: log softmax of the
// model's unmodified logits. Ranks start at 1: 1 + the number of strictly more probable tokens.
struct Logprobs {
  int32_t* tokenIds = nullptr;  // [count, 1 + maxLogprobs]
  float* logprobs = nullptr;    // [count, 1 + maxLogprobs]
  int32_t* ranks = nullptr;     // [count]
  int32_t maxLogprobs = 0;
};

// What at least one row of a batch asks of `sample` beyond a token from its whole vocabulary. The
// host knows it from the requests, and a backend leaves out the work that no row asks for.
struct SampledFeatures {
  bool truncation = false;  // min-p, top-k or top-p
  bool logprobs = false;

  static SampledFeatures of(const SamplingParams& params, int32_t vocabSize) {
    return {isTruncated(params, vocabSize), params.numLogprobs >= 0};
  }

  SampledFeatures& operator|=(const SampledFeatures& other) {
    truncation |= other.truncation;
    logprobs |= other.logprobs;
    return *this;
  }
};

class SamplingOps {
 public:
  virtual ~SamplingOps() = default;

  // Samples one token for each of `count` rows of logits [count, vocabSize] (float32, overwritten),
  // row i for slots[i], into sampled [count], appends it to the slot's tokens in the request table,
  // and fills logprobs row i if that slot requests them (numLogprobs >= 0). `bitmask` [count,
  // ceil(vocabSize / 32)] or null: a set bit allows a token. `features`: at least those of each
  // row. numNans [count] = NaN values among each row's unmodified logits.
  //
  // In vLLM's order: raw logprobs; bitmask, allowed tokens, bad words (over the generated tokens),
  // stop tokens before minTokens, logit bias, repetition (prompt and generated), frequency and
  // presence (generated) penalties; greedy takes the arg max here (the lowest id on ties); then
  // temperature, min-p, top-k, top-p, and a draw by the Gumbel trick: the arg max of logit -
  // log(-log(u)), u from Philox4x32-10 keyed by the seed with the counter (position, token id / 4),
  // where position is the sampled token's own. A row's draw depends on nothing else.
  //
  // For all logits and parameters:
  //
  // - A raw logit of NaN counts as -inf, +inf as the largest float. A token with -inf is
  // impossible:
  //   it stays so, and is sampled only if no permitted token is possible.
  // - A possible token that is permitted stays possible: each step's result (a bias, each penalty,
  //   the division by the temperature) is clamped to float32's finite range, and NaN becomes the
  //   lowest value (limitLogit of logits.h).
  // - min-p, top-k and top-p keep the most probable token, and tokens with a probability of exactly
  //   topP or minP times the largest.
  // - The sampled token is permitted by bitmask and allowed tokens, and neither ends a bad word nor
  //   is an early stop token. If no permitted token is possible, it is the lowest permitted id. If
  //   bad words and stop tokens exclude all tokens that bitmask and allowed tokens permit, they are
  //   ignored and the arg max of the permitted raw logits is sampled. If those permit no token, 0
  //   is.
  virtual void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
                      const RequestTable& requests, const int32_t* bitmask,
                      const SampledFeatures& features, int32_t* sampled, int32_t* numNans,
                      const Logprobs& logprobs) = 0;

  // Logprobs of tokenIds [count] under logits [count, vocabSize] with the numTop most probable
  // tokens, and numNans [count], the NaN values among each row's logits.
  virtual void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                              const int32_t* tokenIds, int32_t numTop, int32_t* numNans,
                              const Logprobs& out) = 0;
};

}  // namespace uniproc
