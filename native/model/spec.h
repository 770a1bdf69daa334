// A model's specification and the limits of its buffers; ModelSpec and ModelLimits of
// lib/native/index.ts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
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

// Mixture of experts: the router selects numExpertsPerToken of numExperts MLPs for each token.
struct ExpertsSpec {
  int32_t numExperts = 0;
  int32_t numExpertsPerToken = 0;
  int32_t intermediateSize = 0;  // per expert
  bool normTopkProb = false;     // the weights of a token's experts are scaled to a sum of 1
  std::vector<bool> layers;      // [numLayers]: the layer has experts instead of the gated MLP
};

// The whole model, independent of the number of ranks.
struct ModelSpec {
  DType dtype = DType::kFloat32;  // of the KV cache, and by default of weights
  int32_t vocabSize = 0;
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
  bool mlpBias = false;  // on gate, up and down
  bool qkNorm = false;
  bool tieWordEmbeddings = false;
  std::optional<ExpertsSpec> experts;
  std::map<std::string, WeightFormat> weightFormats;  // by module; others have `dtype`

  bool hasExperts(int32_t layer) const { return experts && experts->layers[layer]; }
  bool hasGatedMlps() const {
    return !experts || std::find(experts->layers.begin(), experts->layers.end(), false) !=
                           experts->layers.end();
  }
};

// A contiguous part of `of` items: [first, first + count).
struct Share {
  int64_t of = 0;
  int64_t first = 0;
  int64_t count = 0;

  static Share all(int64_t of) { return {of, 0, of}; }
  // The same share in units of elements, `size` per item.
  Share times(int64_t size) const { return {of * size, first * size, count * size}; }
};

// One rank's shard of a model (Shoeybi et al. 2019, Megatron-LM). Each rank holds some of the heads
// and of the MLP's columns: it computes q, k, v, gate and up alone, and the ranks sum the outputs
// of o and down. Experts are divided whole, the vocabulary by rows.
class ModelShard {
 public:
  // Throws Error CONFIG_INVALID if the spec is inconsistent or cannot be divided among the ranks.
  ModelShard(ModelSpec spec, int32_t rank, int32_t worldSize);

  const ModelSpec& spec() const { return spec_; }
  int32_t rank() const { return rank_; }
  int32_t worldSize() const { return worldSize_; }

  Share heads() const { return divide(spec_.numHeads); }
  // With more ranks than KV heads, several ranks hold the same head.
  Share kvHeads() const { return divide(spec_.numKvHeads); }
  Share intermediate() const { return divide(spec_.intermediateSize); }
  Share experts() const { return divide(spec_.experts->numExperts); }
  // Rows of the vocabulary on every rank, padded with zeros past the vocabulary's end.
  int64_t vocabShardSize() const;
  // This rank's rows that belong to tokens.
  Share vocab() const;

  AttentionShape attention(int32_t layer) const {
    return {static_cast<int32_t>(heads().count), static_cast<int32_t>(kvHeads().count),
            spec_.headDim, spec_.slidingWindows[layer]};
  }

 private:
  Share divide(int64_t of) const {
    return {of, rank_ * of / worldSize_, std::max<int64_t>(1, of / worldSize_)};
  }

  const ModelSpec spec_;
  const int32_t rank_;
  const int32_t worldSize_;
};

struct ModelLimits {
  int32_t maxNumSeqs = 0;
  int32_t maxNumBatchedTokens = 0;
  int32_t maxModelLen = 0;
  int32_t blockSize = 0;
  int32_t numSteps = 0;
  int32_t maxLogprobs = 0;
  int64_t listMemoryBytes = 0;  // for lists that exceed a slot's own memory
  bool enforceEager = false;    // no CUDA graphs

  int32_t maxBlocksPerSeq() const { return ceilDiv(maxModelLen, blockSize); }
  // Upper bound of new blocks in a step: its tokens' blocks, plus two partial blocks per row.
  int32_t maxBlockUpdates() const {
    return ceilDiv(maxNumBatchedTokens, blockSize) + 2 * maxNumSeqs;
  }

  // Throws Error CONFIG_INVALID for a limit that is not positive.
  void check() const;

  static constexpr int32_t ceilDiv(int32_t a, int32_t b) { return a / b + (a % b != 0); }
};

}  // namespace uniproc
