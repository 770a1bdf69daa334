// A decoder-only transformer: an embedding, a list of blocks for each layer, and a head. Written
// once over the operations of ops.h.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/blocks/block.h"
#include "model/blocks/embedding.h"
#include "model/blocks/head.h"
#include "model/blocks/per_layer_inputs.h"

namespace uniproc {

class Decoder {
 public:
  // Creates the blocks and declares their parameters; allocates no memory.
  Decoder(const ModelShard& shard, Parameters& parameters);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Allocates the activations of the largest batch. Throws Error OUT_OF_MEMORY; call `release` then
  // to free partial allocations. `communicator` connects the ranks that hold the other shards; null
  // for a single rank.
  void allocate(Ops& ops, const ModelLimits& limits, Communicator* communicator);
  void release() noexcept;
  // Counts the memory of the largest batch as used (Backend::reserve).
  void reserve(Ops& ops);

  enum class Depth : uint8_t {
    kAllLayers,
    kOneOfEachKind,  // takes the memory, and prepares the operations, of all layers
  };

  // Runs the layers on a prepared batch (Ops::prepareInputs), writes its keys and values to the
  // cache and keeps its last hidden states.
  void forward(Ops& ops, const PagedKvCache& cache, const RequestTable& requests,
               const Batch& batch, Depth depth = Depth::kAllLayers);

  // [count, vocabSize], float32: the logits of tokens index[0 .. count) of the last batch; count <=
  // maxNumSeqs. The next call overwrites them. `index` null: tokens 0 .. count, at most once per
  // batch.
  float* computeLogits(Ops& ops, const int32_t* index, int32_t count) {
    return head_.computeLogits(ops, activations_, index, count);
  }
  float* logits() const { return head_.logits(); }
  // [count, hiddenSize], of the activation type: the last norm's output of the same tokens.
  void* computeStates(Ops& ops, const int32_t* index, int32_t count) {
    return head_.computeStates(ops, activations_, index, count);
  }
  DType activationType() const { return activations_.dtype; }

 private:
  const ModelShard& shard_;
  std::vector<Buffer> ropes_;        // of each RopeSpec: [maxModelLen, 2, headDim / 2], float32
  std::vector<Weight> layerScales_;  // [numLayers] of [1], or empty
  Embedding embedding_;
  PerLayerInputs perLayerInputs_;
  std::vector<std::unique_ptr<Block>> blocks_;  // of all layers in order, each layer as many
  Head head_;

  Communicator* communicator_ = nullptr;
  Activations activations_;
};

}  // namespace uniproc
