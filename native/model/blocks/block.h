// A block of a decoder layer, such as attention or MLP: x += block(norm(x)), or x +=
// norm(block(x)).
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/buffer.h"
#include "model/kv_cache.h"
#include "model/parameters.h"
#include "model/spec.h"
#include "ops/ops.h"

namespace uniproc {

// Scratch bytes per token that a block needs between its operations, in three pieces.
struct ScratchBytes {
  size_t first = 0;
  size_t second = 0;
  size_t third = 0;

  ScratchBytes largest(const ScratchBytes& other) const {
    return {std::max(first, other.first), std::max(second, other.second),
            std::max(third, other.third)};
  }
};

// Activations [numTokens, hiddenSize] of type `dtype`, shared by all blocks of a forward pass.
struct Activations {
  DType dtype = DType::kFloat32;
  Buffer residual;  // the sum of all blocks before the last
  Buffer hidden;    // the last block's output (this rank's term of it), or its normed input
  Buffer first;     // the running block's scratch
  Buffer second;
  Buffer third;
  Buffer perLayerInputs;  // [numTokens, numLayers, perLayerInputSize], or null
  // Connects the ranks that hold terms of `hidden` where the next norm begins; null: `hidden` is
  // complete there.
  Communicator* hiddenTerms = nullptr;
};

// The inputs of a forward pass.
struct ForwardPass {
  Ops& ops;
  const Batch& batch;
  const RequestTable& requests;
  const PagedKvCache& cache;
  const Activations& activations;
  Communicator* communicator = nullptr;  // null for a single rank
};

class Block {
 public:
  Block(const ModelShard& shard, int32_t layer) : shard_(shard), layer_(layer) {}
  virtual ~Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  virtual void declare(Parameters& parameters) = 0;
  virtual ScratchBytes scratch(DType activations) const = 0;
  // Unless this is the first block, adds the previous block's output, activations.hidden, to the
  // residual, summed over activations.hiddenTerms. Leaves this rank's term of this block's output
  // in activations.hidden.
  virtual void forward(const ForwardPass& pass, bool isFirst) = 0;
  // Norms and scales activations.hidden as the model requires. Sums it over the ranks before,
  // unless activations.hiddenTerms leave that to the next norm.
  virtual void finish(const ForwardPass& pass) const;
  // The same, of a model with output norms, with the result in `out` [numTokens, hiddenSize].
  void finishInto(const ForwardPass& pass, void* out) const;

 protected:
  ModuleName name(const char* module) const { return {layer_, module}; }
  void declareNorms(Parameters& parameters, const char* inputNorm, const char* outputNorm);
  void declareOutputNorm(Parameters& parameters, const char* outputNorm);
  // finishInto without the sum over the ranks.
  void normOutput(const ForwardPass& pass, void* out) const;
  // [numTokens, hiddenSize]: the block's input, normed unless the model has no input norms.
  const void* input(const ForwardPass& pass, bool isFirst) const;
  // A linear layer on that input, which is returned; out [numTokens, weight.rows].
  const void* inputLinear(const ForwardPass& pass, bool isFirst, const LinearWeight& weight,
                          void* out) const;

  // Gate and up of an MLP: as ForwardOps::linearSiluAndMul, with the model's activation.
  void linearGated(const ForwardPass& pass, const void* x, const LinearWeight& weight, void* gateUp,
                   void* out) const;

  const ModelShard& shard_;
  const int32_t layer_;

 private:
  Weight inputNorm_;   // [hiddenSize], or null
  Weight outputNorm_;  // [hiddenSize], or null
};

}  // namespace uniproc
