// The most probable tokens of a row of logits, and their log probabilities.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/cpu/kernels.h"
#include "ops/ops.h"

namespace uniproc {

struct Candidate {
  float logit;
  int32_t tokenId;
};

// The order of top-k: descending logits, the lower id first on ties.
inline bool ranksBefore(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.tokenId < b.tokenId);
}

// The k most probable tokens of clean logits [vocabSize], excluding -inf, unordered; fewer than k
// if the row has fewer. k >= 1.
void selectTop(const Kernels& kernels, const float* logits, int64_t vocabSize, int64_t k,
               std::vector<Candidate>* candidates);

// Fills row `index` of `out` with the log probability and rank of tokenId under clean logits
// [vocabSize], and the numTop most probable tokens. Ids beyond the vocabulary are -1.
void fillLogprobs(const Kernels& kernels, const float* logits, int64_t vocabSize, int32_t tokenId,
                  int32_t numTop, const Logprobs& out, int64_t index,
                  std::vector<Candidate>* candidates);

}  // namespace uniproc
