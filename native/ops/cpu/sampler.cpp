#include "ops/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/philox.h"
#include "ops/logits.h"

namespace uniproc {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();
// Logits whose processing takes as long as waking a thread.
constexpr int64_t kMinLogitsPerPart = 1 << 14;
constexpr int kDrawBlock = 64;

bool isIn(int32_t tokenId, int32_t vocabSize) { return tokenId >= 0 && tokenId < vocabSize; }

bool hasPenalties(const SamplingParams& params) {
  return params.presencePenalty != 0.0f || params.frequencyPenalty != 0.0f ||
         params.repetitionPenalty != 1.0f;
}

// Keeps the smallest set of most probable candidates with a summed exp(logit - max) of at least
// `target`. A quickselect on the sums, without a full sort.
void keepNucleus(float max, double target, std::vector<Candidate>* candidates) {
  const auto weight = [max](const Candidate& c) { return std::exp(c.logit - max); };
  auto begin = candidates->begin();  // candidates before it are kept; their sum is `sum`
  auto end = candidates->end();      // candidates from it on are dropped
  double sum = 0;
  while (end - begin > 32) {
    Candidate sample[3] = {*begin, begin[(end - begin) / 2], end[-1]};
    std::sort(sample, sample + 3, ranksBefore);
    const Candidate pivot = sample[1];
    const auto middle = std::partition(
        begin, end, [&](const Candidate& candidate) { return !ranksBefore(pivot, candidate); });
    double upper = 0;
    for (auto it = begin; it != middle; ++it) upper += weight(*it);
    if (sum + upper >= target) {
      end = middle;
    } else {
      sum += upper;
      begin = middle;
    }
  }
  std::sort(begin, end, ranksBefore);
  while (begin != end && (sum < target || begin == candidates->begin())) sum += weight(*begin++);
  candidates->erase(begin, candidates->end());
}

}  // namespace

struct Sampler::Row {
  float* logits;
  int32_t vocabSize;
  const SamplingParams& params;
  const int32_t* tokenIds;  // prompt, then generated
  int32_t numPromptTokens;
  int32_t numTokens;
  const int32_t* bitmask;  // or null

  bool allowedByBitmask(int32_t id) const { return !bitmask || bitmask[id / 32] >> (id % 32) & 1; }
};

Sampler::Sampler(ThreadPool& pool, const Kernels& kernels)
    : pool_(pool), kernels_(kernels), scratches_(static_cast<size_t>(pool.numThreads())) {}

void Sampler::sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
                     const RequestTable& requests, const int32_t* bitmask, int32_t* sampled,
                     int32_t* numNans, const Logprobs& logprobs) {
  const int64_t bitmaskWidth = (vocabSize + 31) / 32;
  const int64_t minRows = std::max<int64_t>(kMinLogitsPerPart / vocabSize, 1);
  pool_.parallelFor(count, minRows, [&](int64_t begin, int64_t end, int thread) {
    Scratch& scratch = scratches_[static_cast<size_t>(thread)];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slot = slots[i];
      int32_t* tokenIds = requests.tokenIds + slot * requests.maxModelLen;
      int32_t& numTokens = requests.numTokens[slot];
      const SamplingParams& params = requests.sampling[slot];
      const Row row{logits + i * vocabSize,
                    vocabSize,
                    params,
                    tokenIds,
                    requests.numPromptTokens[slot],
                    numTokens,
                    bitmask ? bitmask + i * bitmaskWidth : nullptr};

      const int64_t nans = kernels_.cleanLogits(row.logits, vocabSize, row.logits);
      numNans[i] = static_cast<int32_t>(nans);
      if (params.numLogprobs >= 0) {
        scratch.rawLogits.assign(row.logits, row.logits + vocabSize);
      }
      sampled[i] = sampleRow(row, scratch);
      if (params.numLogprobs >= 0) {
        fillLogprobs(kernels_, scratch.rawLogits.data(), vocabSize, sampled[i],
                     std::min(params.numLogprobs, logprobs.maxLogprobs), logprobs, i,
                     &scratch.candidates);
      }
      if (numTokens < requests.maxModelLen) tokenIds[numTokens++] = sampled[i];
    }
  });
}

void Sampler::gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                             const int32_t* tokenIds, int32_t numTop, int32_t* numNans,
                             const Logprobs& out) {
  const int64_t minRows = std::max<int64_t>(kMinLogitsPerPart / vocabSize, 1);
  pool_.parallelFor(count, minRows, [&](int64_t begin, int64_t end, int thread) {
    Scratch& scratch = scratches_[static_cast<size_t>(thread)];
    scratch.rawLogits.resize(static_cast<size_t>(vocabSize));
    for (int64_t i = begin; i < end; ++i) {
      numNans[i] = static_cast<int32_t>(
          kernels_.cleanLogits(logits + i * vocabSize, vocabSize, scratch.rawLogits.data()));
      fillLogprobs(kernels_, scratch.rawLogits.data(), vocabSize, tokenIds[i],
                   std::min(numTop, out.maxLogprobs), out, i, &scratch.candidates);
    }
  });
}

int32_t Sampler::sampleRow(const Row& row, Scratch& scratch) const {
  const SamplingParams& params = row.params;
  applyBitmask(row);
  applyAllowedTokens(row, scratch);
  applyBans(row, scratch);
  applyLogitBias(row);
  applyPenalties(row, scratch);

  float max = kernels_.max(row.logits, row.vocabSize);
  if (max == kBanned) return chooseImpossible(row, scratch);
  if (isGreedy(params)) return argMax(row, max);

  if (params.temperature != 1.0f) {
    kernels_.divide(row.logits, row.vocabSize, params.temperature);
    max = limitLogit(max / params.temperature);
  }
  if (params.minP > 0.0f) {
    kernels_.maskLess(row.logits, row.vocabSize, max + std::log(std::min(params.minP, 1.0f)));
  }
  const bool topP = hasTopP(params);
  if (!hasTopK(params, row.vocabSize) && !topP) return drawFromAll(row);
  if (hasTopK(params, row.vocabSize)) {
    selectTop(kernels_, row.logits, row.vocabSize, params.topK, &scratch.candidates);
    if (topP) {
      double sum = 0;
      for (const Candidate& c : scratch.candidates) sum += std::exp(c.logit - max);
      keepNucleus(max, std::max(params.topP, 0.0f) * sum, &scratch.candidates);
    }
  } else {
    gatherNucleus(row, max, scratch);
  }
  return drawFrom(row, scratch.candidates);
}

void Sampler::applyBitmask(const Row& row) const {
  if (!row.bitmask) return;
  for (int32_t id = 0; id < row.vocabSize; id += 32) {
    if (row.bitmask[id / 32] == -1) continue;
    for (int32_t i = id; i < std::min(id + 32, row.vocabSize); ++i) {
      if (!row.allowedByBitmask(i)) row.logits[i] = kBanned;
    }
  }
}

void Sampler::applyAllowedTokens(const Row& row, Scratch& scratch) const {
  const SamplingParams& params = row.params;
  if (params.numAllowedTokenIds == 0) return;
  auto& kept = scratch.allowedLogits;
  kept.clear();
  for (int32_t i = 0; i < params.numAllowedTokenIds; ++i) {
    const int32_t id = params.allowedTokenIds[i];
    kept.push_back(isIn(id, row.vocabSize) ? row.logits[id] : kBanned);
  }
  std::fill_n(row.logits, row.vocabSize, kBanned);
  for (int32_t i = 0; i < params.numAllowedTokenIds; ++i) {
    const int32_t id = params.allowedTokenIds[i];
    if (isIn(id, row.vocabSize)) row.logits[id] = kept[static_cast<size_t>(i)];
  }
}

// Bans the last token of bad words whose other tokens were just generated, and stop tokens before
// minTokens.
void Sampler::applyBans(const Row& row, Scratch& scratch) const {
  const SamplingParams& params = row.params;
  const int32_t numGenerated = row.numTokens - row.numPromptTokens;
  scratch.banned.clear();
  const auto ban = [&](int32_t id) {
    if (!isIn(id, row.vocabSize)) return;
    scratch.banned.push_back({row.logits[id], id});
    row.logits[id] = kBanned;
  };
  for (int32_t i = 0; i < params.numBadWords; ++i) {
    const int32_t begin = i == 0 ? 0 : params.badWordsEnds[i - 1];
    const int32_t numBefore = params.badWordsEnds[i] - begin - 1;
    if (numBefore < 0 || numBefore > numGenerated) continue;
    const int32_t* word = params.badWordsTokenIds + begin;
    if (std::equal(word, word + numBefore, row.tokenIds + row.numTokens - numBefore)) {
      ban(word[numBefore]);
    }
  }
  if (numGenerated < params.minTokens) {
    for (int32_t i = 0; i < params.numStopTokenIds; ++i) ban(params.stopTokenIds[i]);
  }
}

void Sampler::applyLogitBias(const Row& row) const {
  for (int32_t i = 0; i < row.params.numLogitBiases; ++i) {
    const int32_t id = row.params.logitBiasTokenIds[i];
    if (!isIn(id, row.vocabSize) || row.logits[id] == kBanned) continue;
    row.logits[id] = limitLogit(row.logits[id] + row.params.logitBiases[i]);
  }
}

// Repetition penalty (Keskar et al. 2019) on tokens of prompt and output, frequency and presence
// penalties on output tokens. A processed token's count is set to -1, so each is penalized once.
void Sampler::applyPenalties(const Row& row, Scratch& scratch) const {
  const SamplingParams& params = row.params;
  if (!hasPenalties(params)) return;
  int32_t* counts = scratch.zeroCounts(row.vocabSize);
  for (int32_t i = row.numPromptTokens; i < row.numTokens; ++i) {
    if (isIn(row.tokenIds[i], row.vocabSize)) ++counts[row.tokenIds[i]];
  }
  for (int32_t i = 0; i < row.numTokens; ++i) {
    const int32_t id = row.tokenIds[i];
    if (!isIn(id, row.vocabSize) || counts[id] < 0) continue;
    const int32_t times = std::exchange(counts[id], -1);
    float& logit = row.logits[id];
    if (logit == kBanned) continue;
    logit =
        limitLogit(logit > 0 ? logit / params.repetitionPenalty : logit * params.repetitionPenalty);
    if (times == 0) continue;
    logit = limitLogit(logit - params.frequencyPenalty * static_cast<float>(times));
    logit = limitLogit(logit - params.presencePenalty);
  }
  for (int32_t i = 0; i < row.numTokens; ++i) {
    if (isIn(row.tokenIds[i], row.vocabSize)) counts[row.tokenIds[i]] = 0;
  }
}

int32_t Sampler::argMax(const Row& row, float max) const {
  return static_cast<int32_t>(kernels_.findNotLess(row.logits, 0, row.vocabSize, max));
}

// Chooses a token if the row has no possible one.
int32_t Sampler::chooseImpossible(const Row& row, Scratch& scratch) const {
  int32_t* isBanned = scratch.zeroCounts(row.vocabSize);
  for (const Candidate& banned : scratch.banned) isBanned[banned.tokenId] = 1;
  int32_t token = lowestPermitted(row, isBanned);
  for (const Candidate& banned : scratch.banned) isBanned[banned.tokenId] = 0;
  if (token >= 0) return token;

  // Undo the bans, last first: for a token banned twice, the first record holds its own logit.
  for (auto it = scratch.banned.rbegin(); it != scratch.banned.rend(); ++it) {
    row.logits[it->tokenId] = it->logit;
  }
  const float max = kernels_.max(row.logits, row.vocabSize);
  if (max > kBanned) return argMax(row, max);
  return std::max(lowestPermitted(row, isBanned), 0);
}

// The lowest id that bitmask and allowed tokens permit and that is not banned, or -1.
int32_t Sampler::lowestPermitted(const Row& row, const int32_t* isBanned) const {
  const SamplingParams& params = row.params;
  const bool hasList = params.numAllowedTokenIds > 0;
  const int32_t count = hasList ? params.numAllowedTokenIds : row.vocabSize;
  int32_t lowest = row.vocabSize;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t id = hasList ? params.allowedTokenIds[i] : i;
    if (id < 0 || id >= lowest || isBanned[id] || !row.allowedByBitmask(id)) continue;
    lowest = id;
    if (!hasList) break;
  }
  return lowest < row.vocabSize ? lowest : -1;
}

// Sets the candidates to the row's nucleus (Holtzman et al. 2019). Tokens with a probability below
// (1 - topP) / vocabSize sum to less than 1 - topP, so the nucleus excludes them.
void Sampler::gatherNucleus(const Row& row, float max, Scratch& scratch) const {
  const double topP = std::max(row.params.topP, 0.0f);
  const double sum = kernels_.sumExp(row.logits, row.vocabSize, max);
  const double least = (1.0 - topP) * sum / row.vocabSize;
  // Slightly lower, because the sum and the logits are rounded, but above forbidden tokens.
  const float slack = 1e-3f + std::abs(max) * 0x1p-22f;
  const float threshold = limitLogit(max + static_cast<float>(std::log(least)) - slack);
  scratch.candidates.clear();
  for (int64_t i = kernels_.findNotLess(row.logits, 0, row.vocabSize, threshold); i < row.vocabSize;
       i = kernels_.findNotLess(row.logits, i + 1, row.vocabSize, threshold)) {
    scratch.candidates.push_back({row.logits[i], static_cast<int32_t>(i)});
  }
  keepNucleus(max, topP * sum, &scratch.candidates);
}

int32_t Sampler::drawFromAll(const Row& row) const {
  float best = kBanned;
  int32_t token = 0;
  for (int32_t begin = 0; begin < row.vocabSize; begin += kDrawBlock) {
    const int32_t count = std::min(kDrawBlock, row.vocabSize - begin);
    if (kernels_.max(row.logits + begin, count) + kMaxGumbel <= best) continue;  // cannot win
    uint32_t words[kDrawBlock];
    for (int32_t i = 0; i < kDrawBlock; i += 4) {
      const PhiloxBlock block = samplingWords(row.params.seed, row.numTokens, (begin + i) / 4);
      std::copy_n(block.words, 4, words + i);
    }
    float noise[kDrawBlock];
    kernels_.gumbel(words, kDrawBlock, noise);
    for (int32_t i = 0; i < count; ++i) {
      const float score = row.logits[begin + i] + noise[i];
      if (score > best) {
        best = score;
        token = begin + i;
      }
    }
  }
  return token;
}

int32_t Sampler::drawFrom(const Row& row, const std::vector<Candidate>& candidates) const {
  Candidate best{kBanned, 0};  // by logit plus noise
  for (size_t begin = 0; begin < candidates.size(); begin += kDrawBlock) {
    const size_t count = std::min<size_t>(kDrawBlock, candidates.size() - begin);
    uint32_t words[kDrawBlock] = {};
    for (size_t i = 0; i < count; ++i) {
      const int32_t id = candidates[begin + i].tokenId;
      words[i] = samplingWords(row.params.seed, row.numTokens, id / 4).words[id % 4];
    }
    float noise[kDrawBlock];
    kernels_.gumbel(words, kDrawBlock, noise);
    for (size_t i = 0; i < count; ++i) {
      const Candidate& candidate = candidates[begin + i];
      const Candidate noisy{candidate.logit + noise[i], candidate.tokenId};
      if (ranksBefore(noisy, best)) best = noisy;
    }
  }
  return best.tokenId;
}

}  // namespace uniproc
