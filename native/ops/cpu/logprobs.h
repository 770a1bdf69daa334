// The likeliest tokens of a row of logits, and their log probabilities.
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

// The order of a top k: of equal logits the lower id is first.
inline bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.tokenId < b.tokenId);
}

// The k likeliest tokens of clean logits [vocabSize] above -inf, in no order: fewer than k if there
// are not so many. k >= 1.
void selectTop(const Kernels& kernels, const float* logits, int64_t vocabSize, int64_t k,
               std::vector<Candidate>* candidates);

// Fills row `index` of `out` with the log probability and rank of tokenId under clean logits
// [vocabSize], and with the numTop likeliest tokens. Where the vocabulary has fewer, the ids are
// -1.
void fillLogprobs(const Kernels& kernels, const float* logits, int64_t vocabSize, int32_t tokenId,
                  int32_t numTop, const Logprobs& out, int64_t index,
                  std::vector<Candidate>* candidates);

}  // namespace uniproc
