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
  enum class Type : uint8_t {
    kDefault,
    kLinear,
    kDynamic,
    kLlama3,
    kYarn,
    kLongRope,
    kProportional
  };
  Type type = Type::kDefault;
  double factor = 1.0;
  double originalMaxPositionEmbeddings = 0.0;  // dynamic, llama3, yarn, longrope
  double lowFreqFactor = 1.0;                  // llama3
  double highFreqFactor = 1.0;                 // llama3
  double betaFast = 32.0;                      // yarn
  double betaSlow = 1.0;                       // yarn
  double attentionFactor = 1.0;                // yarn, longrope: scale of cos and sin
  bool truncate = true;                        // yarn
  int32_t rotatedDim = 0;                      // proportional: pairs beyond stay as they are
  std::vector<double> shortFactors;            // longrope, [rotaryDim / 2]
  std::vector<double> longFactors;             // longrope, [rotaryDim / 2]
};

// A rotary embedding (Su et al. 2021) of the first rotaryDim elements of each head.
struct RopeSpec {
  double theta = 0.0;
  RopeScaling scaling;
  int32_t rotaryDim = 0;
};

// kUnweighted: of each head, without weights, in layers with rotary embedding.
enum class QkNorm : uint8_t { kNone, kHead, kProjection, kUnweighted };

// Mixture of experts: the router selects numExpertsPerToken of numExperts MLPs for each token.
struct ExpertsSpec {
  int32_t numExperts = 0;
  int32_t numExpertsPerToken = 0;
  int32_t intermediateSize = 0;  // per expert
  bool normTopkProb = false;     // the weights of a token's experts are scaled to a sum of 1
  // The router scores experts by sigmoids, with a bias of each expert (SigmoidRouting), instead of
  // the softmax.
  bool sigmoidScores = false;
  bool scoreBias = false;  // of the sigmoids
  int32_t numGroups = 1;
  int32_t numChosenGroups = 1;
  float weightScale = 1.0f;  // of the sigmoids' weights
  bool scalesInput = false;  // the weight is of the expert's input, not of its output; needs topK 1
  bool routerBias = false;
  // Of the router's input, in place of the experts': its output is divided by sqrt(hiddenSize).
  bool routerNorm = false;
  bool expertScales = false;  // of the softmax's weights, one of each expert
  bool bias = false;          // on gate, up and down of each expert
  // Size of an MLP that all tokens pass besides; 0: none.
  int32_t sharedIntermediateSize = 0;
  bool sharedGate = false;  // it is scaled by the sigmoid of a gate
  // The layer has both, and each its norms of input and output; these are summed.
  bool besideMlp = false;
  std::vector<bool> layers;  // [numLayers]: the layer has experts instead of the gated MLP
};

// The heads of some layers, where they differ from the others'.
struct OtherHeads {
  int32_t numKvHeads = 0;
  int32_t headDim = 0;
  std::vector<bool> layers;  // [numLayers]: the layer has these
};

// Keys and values are cached in fp8 E4M3, divided by their layer's scale. [numLayers]
struct Fp8CacheSpec {
  std::vector<float> keyScales;
  std::vector<float> valueScales;
};

// The whole model, independent of the number of ranks.
struct ModelSpec {
  DType dtype = DType::kFloat32;  // by default of weights and the KV cache
  int32_t vocabSize = 0;
  int32_t hiddenSize = 0;
  int32_t intermediateSize = 0;
  int32_t numLayers = 0;
  int32_t numHeads = 0;
  int32_t numKvHeads = 0;
  int32_t headDim = 0;
  std::optional<OtherHeads> otherHeads;
  float rmsNormEps = 0.0f;
  std::vector<RopeSpec> ropes;
  std::vector<int32_t> layerRopes;      // [numLayers]: index into ropes, -1: no rotation
  bool interleavedRope = false;         // the files' heads have pairs (2i, 2i + 1)
  std::vector<int32_t> slidingWindows;  // [numLayers], 0: attends to all
  bool chunkedWindows = false;          // AttentionShape::isChunked, of layers with a window
  // [numLayers]: the layer whose keys and values this one attends to, itself or an earlier one;
  // empty: each has its own.
  std::vector<int32_t> kvLayers;
  // The MLPs of layers without own keys and values are 2 * intermediateSize wide.
  bool doubleWideMlps = false;
  bool attentionSinks = false;  // each head has one more score, without a value
  bool qkvBias = false;
  bool outputBias = false;
  bool mlpBias = false;  // on gate, up and down
  QkNorm qkNorm = QkNorm::kNone;
  bool valueNorm = false;                     // RMSNorm of each head of v, without weights
  Activation activation = Activation::kSilu;  // of MLPs and experts
  // A block computes x += outputNorm(block(inputNorm(x))), with either norm or both.
  bool inputNorms = true;
  bool outputNorms = false;
  bool layerScales = false;  // of the residual behind each layer; needs outputNorms
  float normOffset = 0.0f;   // added to the weights of all norms
  float embeddingScale = 1.0f;
  bool roundsEmbeddingScale = false;  // to `dtype`
  // Size of what each layer gets of a token besides the residual, by PerLayerInputs; 0: nothing.
  int32_t perLayerInputSize = 0;
  float attentionScale = 0.0f;  // of query times key
  // Queries are scaled by 1 + beta * log(1 + floor((position + shift) / period)); of beta 0: not.
  float queryScaleBeta = 0.0f;
  float queryScalePeriod = 1.0f;
  int32_t queryScaleShift = 0;
  bool queryScaleUnrotatedOnly = false;  // in layers without rotary embedding
  float residualScale = 1.0f;            // of a block's output
  float logitScale = 1.0f;
  float attentionSoftcap = 0.0f;  // x is cap * tanh(x / cap); 0: x
  float logitSoftcap = 0.0f;
  bool tieWordEmbeddings = false;
  // No output head: a step returns the last norm of each prompt's last token instead of a token.
  bool poolsLastToken = false;
  std::optional<ExpertsSpec> experts;
  std::map<std::string, WeightFormat> weightFormats;  // by module; others have `dtype`
  std::optional<Fp8CacheSpec> fp8Cache;               // none: the KV cache has `dtype`

  bool hasOtherHeads(int32_t layer) const { return otherHeads && otherHeads->layers[layer]; }
  int32_t headDimOf(int32_t layer) const {
    return hasOtherHeads(layer) ? otherHeads->headDim : headDim;
  }
  int32_t numKvHeadsOf(int32_t layer) const {
    return hasOtherHeads(layer) ? otherHeads->numKvHeads : numKvHeads;
  }
  int32_t kvLayerOf(int32_t layer) const { return kvLayers.empty() ? layer : kvLayers[layer]; }
  bool hasOwnKeys(int32_t layer) const { return kvLayerOf(layer) == layer; }
  bool isDoubleWide(int32_t layer) const { return doubleWideMlps && !hasOwnKeys(layer); }
  // Of the layers that have rope `index`.
  int32_t headDimOfRope(int32_t index) const {
    const auto layer = std::find(layerRopes.begin(), layerRopes.end(), index);
    return layer == layerRopes.end() ? headDim
                                     : headDimOf(static_cast<int32_t>(layer - layerRopes.begin()));
  }
  // Null for a layer without rotary embedding.
  const RopeSpec* rope(int32_t layer) const {
    return layerRopes[layer] < 0 ? nullptr : &ropes[layerRopes[layer]];
  }
  StorageType cacheType() const { return fp8Cache ? StorageType::kFloat8E4M3 : storageOf(dtype); }
  bool hasExperts(int32_t layer) const { return experts && experts->layers[layer]; }
  bool hasGatedMlps() const {
    return !experts || experts->besideMlp ||
           std::find(experts->layers.begin(), experts->layers.end(), false) !=
               experts->layers.end();
  }
};

// A contiguous part of `of` items: [first, first + count).
struct Share {
  int64_t of = 0;
  int64_t first = 0;
  int64_t count = 0;

  static Share all(int64_t of) { return {of, 0, of}; }
  bool contains(int64_t item) const { return item >= first && item < first + count; }
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
  Share kvHeads(int32_t layer) const { return divide(spec_.numKvHeadsOf(layer)); }
  Share intermediate(int32_t layer) const {
    return divide(int64_t{spec_.isDoubleWide(layer) ? 2 : 1} * spec_.intermediateSize);
  }
  Share experts() const { return divide(spec_.experts->numExperts); }
  Share sharedIntermediate() const { return divide(spec_.experts->sharedIntermediateSize); }
  // Rows of the vocabulary on every rank, padded with zeros past the vocabulary's end.
  int64_t vocabShardSize() const;
  // This rank's rows that belong to tokens.
  Share vocab() const;

  AttentionShape attention(int32_t layer) const {
    return {static_cast<int32_t>(heads().count),
            static_cast<int32_t>(kvHeads(layer).count),
            spec_.headDimOf(layer),
            spec_.slidingWindows[layer],
            spec_.attentionScale,
            spec_.attentionSoftcap,
            /*sinks=*/{},
            spec_.chunkedWindows,
            spec_.hasOwnKeys(layer)};
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
  // [numLayers]: the group of layers that each belongs to, in the KV cache; empty: all are in one.
  std::vector<int32_t> kvCacheGroups;

  int32_t kvCacheGroup(int32_t layer) const {
    return kvCacheGroups.empty() ? 0 : kvCacheGroups[layer];
  }
  int32_t numKvCacheGroups() const {
    return kvCacheGroups.empty()
               ? 1
               : 1 + *std::max_element(kvCacheGroups.begin(), kvCacheGroups.end());
  }
  int32_t maxBlocksPerSeq() const { return ceilDiv(maxModelLen, blockSize); }
  // Upper bound of new blocks in a step: its tokens' blocks, plus two partial blocks per row, in
  // each group of layers.
  int32_t maxBlockUpdates() const {
    return numKvCacheGroups() * (ceilDiv(maxNumBatchedTokens, blockSize) + 2 * maxNumSeqs);
  }

  // Throws Error CONFIG_INVALID for a limit that is not positive, or groups that are not those of
  // `numLayers` layers.
  void check(int32_t numLayers) const;

  static constexpr int32_t ceilDiv(int32_t a, int32_t b) { return a / b + (a % b != 0); }
};

}  // namespace uniproc
