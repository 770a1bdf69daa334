// Sampling: a token for each row of logits.
#pragma once

#include <cstdint>

namespace uniproc {

struct RequestTable;

// Plain numbers of one request's sampling. A float may be any of float32's, NaN and infinities
// included. The lists are device arrays owned by the backend's request table; a null list is an
// empty one. Their token ids are within the vocabulary.
struct SamplingParams {
  float temperature = 1.0f;  // below 1e-5 or NaN: greedy
  float topP = 1.0f;         // from 1 on or NaN: all; below 0 as 0: the likeliest token alone
  int32_t topK = 0;          // below 1: all
  float minP = 0.0f;         // up to 0 or NaN: all; above 1 as 1
  float presencePenalty = 0.0f;
  float frequencyPenalty = 0.0f;
  float repetitionPenalty = 1.0f;
  uint64_t seed = 0;
  int32_t minTokens = 0;
  int32_t numLogprobs = -1;                    // alternatives to report; -1: no logprobs at all
  int32_t numPromptLogprobs = -1;              // the same for the prompt
  const int32_t* logitBiasTokenIds = nullptr;  // each once
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

// Logprobs of `count` positions, each [1 + maxLogprobs] wide: the position's own token first, then
// the most likely in falling order (on equal logits the lower id first). Raw: log softmax of the
// logits as the model gave them. Ranks count from 1: 1 + the number of tokens strictly likelier.
struct Logprobs {
  int32_t* tokenIds = nullptr;  // [count, 1 + maxLogprobs]
  float* logprobs = nullptr;    // [count, 1 + maxLogprobs]
  int32_t* ranks = nullptr;     // [count]
  int32_t maxLogprobs = 0;
};

class SamplingOps {
 public:
  virtual ~SamplingOps() = default;

  // Samples one token for each of `count` rows of logits [count, vocabSize] (float32, overwritten),
  // row i for slots[i], into sampled [count], appends it to the slot's tokens in the request table,
  // and fills logprobs row i where that slot asks for them (numLogprobs >= 0). `bitmask` [count,
  // ceil(vocabSize / 32)] or null: a set bit allows a token. numNans [count] becomes the number of
  // NaN among each row's logits as the model gave them.
  //
  // In vLLM's order: raw logprobs; bitmask, allowed tokens, bad words (over the generated tokens),
  // stop tokens before minTokens, logit bias, repetition (prompt and generated), frequency and
  // presence (generated) penalties; greedy takes the arg max here (the lowest id of equals); then
  // temperature, min-p, top-k, top-p, and a draw by the Gumbel trick: the arg max of logit -
  // log(-log(u)), u from Philox4x32-10 keyed by the seed with the counter (position, token id / 4),
  // position being the sampled token's own. A row's draw depends on nothing else.
  //
  // Whatever the logits and the parameters are:
  //
  // - A raw logit of NaN counts as -inf, +inf as the largest float. A token with -inf is
  // impossible:
  //   it stays so, and is sampled only where no permitted token is possible.
  // - A possible token that is permitted stays possible: each step's result (a bias, each penalty,
  //   the division by the temperature) is limited to float32's finite numbers, NaN becoming the
  //   lowest of them (limitLogit of logits.h).
  // - min-p, top-k and top-p keep the likeliest token. One with a probability of exactly topP or
  //   minP times the largest is kept.
  // - The token is one that bitmask and allowed tokens permit and that is neither the end of a bad
  //   word nor an early stop token. Where no permitted token is possible, it is the lowest such id.
  //   Where bad words and stop tokens leave nothing of what bitmask and allowed tokens permit, they
  //   are lifted, and it is the arg max of the raw logits permitted. Where those permit nothing, 0.
  virtual void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
                      const RequestTable& requests, const int32_t* bitmask, int32_t* sampled,
                      int32_t* numNans, const Logprobs& logprobs) = 0;

  // Logprobs of tokenIds [count] under logits [count, vocabSize], with the numTop likeliest, and
  // the number of NaN among each row's logits, numNans [count].
  virtual void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                              const int32_t* tokenIds, int32_t numTop, int32_t* numNans,
                              const Logprobs& out) = 0;
};

}  // namespace uniproc
