#include "ops/cpu/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace uniproc {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

}  // namespace

// Gathers up to 2 k candidates, then drops the lower half. After that only logits above the lowest
// remaining candidate qualify, so the scan skips most of a row.
void selectTop(const Kernels& kernels, const float* logits, int64_t vocabSize, int64_t k,
               std::vector<Candidate>* candidates) {
  k = std::min(k, vocabSize);
  const auto capacity = static_cast<size_t>(2 * k + 256);
  float threshold = kLowest;
  candidates->clear();
  const auto keepBest = [&] {
    if (static_cast<int64_t>(candidates->size()) <= k) return;
    std::nth_element(candidates->begin(), candidates->begin() + (k - 1), candidates->end(),
                     ranksBefore);
    candidates->resize(static_cast<size_t>(k));
    threshold = candidates->back().logit;
  };
  // Ids ascend, so a later token with the threshold's logit never qualifies.
  for (int64_t i = kernels.findGreater(logits, 0, vocabSize, threshold); i < vocabSize;
       i = kernels.findGreater(logits, i + 1, vocabSize, threshold)) {
    candidates->push_back({logits[i], static_cast<int32_t>(i)});
    if (candidates->size() == capacity) keepBest();
  }
  keepBest();
}

void fillLogprobs(const Kernels& kernels, const float* logits, int64_t vocabSize, int32_t tokenId,
                  int32_t numTop, const Logprobs& out, int64_t index,
                  std::vector<Candidate>* candidates) {
  const float max = kernels.max(logits, vocabSize);
  const double logSum = std::log(kernels.sumExp(logits, vocabSize, max));
  const auto logprob = [&](float logit) {
    return logit == kLowest ? kLowest : static_cast<float>(logit - max - logSum);
  };
  int32_t* tokenIds = out.tokenIds + index * (1 + out.maxLogprobs);
  float* logprobs = out.logprobs + index * (1 + out.maxLogprobs);
  tokenIds[0] = tokenId;
  logprobs[0] = logprob(logits[tokenId]);
  out.ranks[index] =
      1 + static_cast<int32_t>(kernels.countGreater(logits, vocabSize, logits[tokenId]));
  if (numTop <= 0) return;

  selectTop(kernels, logits, vocabSize, numTop, candidates);
  std::sort(candidates->begin(), candidates->end(), ranksBefore);
  // Fill up with impossible tokens, in the order of their ids.
  for (int32_t id = 0; id < vocabSize && static_cast<int32_t>(candidates->size()) < numTop; ++id) {
    if (logits[id] == kLowest) candidates->push_back({kLowest, id});
  }
  candidates->resize(static_cast<size_t>(numTop), {kLowest, -1});
  for (int32_t i = 0; i < numTop; ++i) {
    tokenIds[1 + i] = (*candidates)[static_cast<size_t>(i)].tokenId;
    logprobs[1 + i] = logprob((*candidates)[static_cast<size_t>(i)].logit);
  }
}

}  // namespace uniproc
