// What a model is and what its buffers are made for; ModelSpec and ModelLimits of
// lib/native/index.ts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace uniproc {

struct RopeScaling {
  enum class Type : uint8_t { kDefault, kLinear, kLlama3, kYarn };
  Type type = Type::kDefault;
  double factor = 1.0;
  double originalMaxPositionEmbeddings = 0.0;  // llama3, yarn
  double lowFreqFactor = 1.0;                  // llama3
  double highFreqFactor = 1.0;                 // llama3
  double betaFast = 32.0;                      // yarn
  double betaSlow = 1.0;                       // yarn
  double attentionFactor = 1.0;                // yarn: scale of cos and sin
  bool truncate = true;                        // yarn
};

// Rows of the embedding and of the head: `size` of them, from token `start` on.
struct VocabShard {
  int32_t start = 0;
  int32_t size = 0;
};

// One rank's share of a model: the sizes of vocabulary and hidden states are the whole model's,
// those of heads and MLP are this rank's.
struct ModelSpec {
  DType dtype = DType::kFloat32;
  int32_t vocabSize = 0;
  VocabShard vocabShard;
  int32_t hiddenSize = 0;
  int32_t intermediateSize = 0;
  int32_t numLayers = 0;
  int32_t numHeads = 0;
  int32_t numKvHeads = 0;
  int32_t headDim = 0;
  float rmsNormEps = 0.0f;
  double ropeTheta = 0.0;
  RopeScaling ropeScaling;
  std::vector<int32_t> slidingWindows;  // [numLayers], 0: attends to all
  bool qkvBias = false;
  bool outputBias = false;
  bool gateUpBias = false;
  bool downBias = false;
  bool qkNorm = false;
  bool tieWordEmbeddings = false;

  // Rows of the shard that are tokens; the others, its last, are zeros.
  int32_t vocabRows() const { return std::clamp(vocabSize - vocabShard.start, 0, vocabShard.size); }
  // Columns of q, k and v side by side.
  int32_t qkvSize() const { return (numHeads + 2 * numKvHeads) * headDim; }
  AttentionShape attention(int32_t layer) const {
    return {numHeads, numKvHeads, headDim, slidingWindows[layer]};
  }
};

struct ModelLimits {
  int32_t maxNumSeqs = 0;
  int32_t maxNumBatchedTokens = 0;
  int32_t maxModelLen = 0;
  int32_t blockSize = 0;
  int32_t numSteps = 0;
  int32_t maxLogprobs = 0;
  int64_t listMemoryBytes = 0;  // for lists of requests that a slot's own memory does not hold
  bool enforceEager = false;    // no graphs

  int32_t maxBlocksPerSeq() const { return ceilDiv(maxModelLen, blockSize); }
  // A step's tokens fill so many blocks when each row starts one, and each row may straddle two.
  int32_t maxBlockUpdates() const {
    return ceilDiv(maxNumBatchedTokens, blockSize) + 2 * maxNumSeqs;
  }

  static constexpr int32_t ceilDiv(int32_t a, int32_t b) { return a / b + (a % b != 0); }
};

}  // namespace uniproc
