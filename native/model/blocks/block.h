// A block of a decoder layer, such as attention or MLP: x += block(norm(x)).
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
  virtual ~Block() = default;
  virtual void declare(Parameters& parameters) = 0;
  virtual ScratchBytes scratch(DType activations) const = 0;
  // Unless this is the first block, adds the previous block's output, activations.hidden summed
  // over the ranks, to the residual. Leaves this block's output in activations.hidden, as this
  // rank's term of that sum.
  virtual void forward(const ForwardPass& pass, bool isFirst) = 0;
};

}  // namespace uniproc
