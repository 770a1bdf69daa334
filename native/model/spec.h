// What a model is and what its buffers are made for; ModelSpec and ModelLimits of
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

// Mixture of experts: of each token's numExperts MLPs the router picks numExpertsPerToken.
struct ExpertsSpec {
  int32_t numExperts = 0;
  int32_t numExpertsPerToken = 0;
  int32_t intermediateSize = 0;  // of one expert
  bool normTopkProb = false;     // the weights of a token's experts are scaled to a sum of 1
  std::vector<bool> layers;      // [numLayers]: has experts in place of the gated MLP
};

// The whole model, however many ranks divide it.
struct ModelSpec {
  DType dtype = DType::kFloat32;  // of the KV cache, and of weights that have no other format
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
  std::map<std::string, WeightFormat> weightFormats;  // by module; the others have `dtype`

  bool hasExperts(int32_t layer) const { return experts && experts->layers[layer]; }
  bool hasGatedMlps() const {
    return !experts || std::find(experts->layers.begin(), experts->layers.end(), false) !=
                           experts->layers.end();
  }
};

// Some of `of` things in a row: `count` of them from `first` on.
struct Share {
  int64_t of = 0;
  int64_t first = 0;
  int64_t count = 0;

  static Share all(int64_t of) { return {of, 0, of}; }
  // The same share of things that are made of `size` elements each.
  Share times(int64_t size) const { return {of * size, first * size, count * size}; }
};

// A model as one rank holds it (Shoeybi et al. 2019, Megatron-LM). Each rank has some of the heads
// and of the MLP's columns: what it computes of q, k, v, gate and up it needs no other rank for,
// and what o and down make of them is summed over the ranks. Experts are divided whole, the
// vocabulary by rows.
class ModelShard {
 public:
  // Throws Error CONFIG_INVALID when the spec contradicts itself or cannot be divided so.
  ModelShard(ModelSpec spec, int32_t rank, int32_t worldSize);

  const ModelSpec& spec() const { return spec_; }
  int32_t rank() const { return rank_; }
  int32_t worldSize() const { return worldSize_; }

  Share heads() const { return divide(spec_.numHeads); }
  // Where there are more ranks than these, several hold the same one.
  Share kvHeads() const { return divide(spec_.numKvHeads); }
  Share intermediate() const { return divide(spec_.intermediateSize); }
  Share experts() const { return divide(spec_.experts->numExperts); }
  // Every rank holds so many rows, the last ones' going beyond the vocabulary; those are zeros.
  int64_t vocabShardSize() const;
  // The rows of this rank that are tokens.
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
  int64_t listMemoryBytes = 0;  // for lists of requests that a slot's own memory does not hold
  bool enforceEager = false;    // no graphs

  int32_t maxBlocksPerSeq() const { return ceilDiv(maxModelLen, blockSize); }
  // A step's tokens fill so many blocks when each row starts one, and each row may straddle two.
  int32_t maxBlockUpdates() const {
    return ceilDiv(maxNumBatchedTokens, blockSize) + 2 * maxNumSeqs;
  }

  // Throws Error CONFIG_INVALID for a limit that is not positive.
  void check() const;

  static constexpr int32_t ceilDiv(int32_t a, int32_t b) { return a / b + (a % b != 0); }
};

}  // namespace uniproc
