// A block of a decoder's layer: x += block(norm(x)), as attention and MLP are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "model/kv_cache.h"
#include "model/parameters.h"
#include "model/spec.h"
#include "ops/ops.h"
#include "runtime/buffer.h"

namespace uniproc {

// Bytes a token that a block needs between its operations, in three pieces.
struct ScratchBytes {
  size_t first = 0;
  size_t second = 0;
  size_t third = 0;

  ScratchBytes largest(const ScratchBytes& other) const {
    return {std::max(first, other.first), std::max(second, other.second),
            std::max(third, other.third)};
  }
};

// Where a forward pass keeps what it computes: one for all blocks, as they follow each other.
// Activations [numTokens, hiddenSize] of the type `dtype`.
struct Activations {
  DType dtype = DType::kFloat32;
  Buffer residual;  // the sum of all blocks before the last
  Buffer hidden;    // the last block's output, or its normed input
  Buffer first;     // the running block's scratch
  Buffer second;
  Buffer third;
};

// What a forward pass runs on.
struct ForwardPass {
  Ops& ops;
  const Batch& batch;
  const RequestTable& requests;
  const PagedKvCache& cache;
  const Activations& activations;
};

class Block {
 public:
  virtual ~Block() = default;
  virtual void declare(Parameters& parameters) = 0;
  virtual ScratchBytes scratch(DType activations) const = 0;
  // Adds the block before's output, activations.hidden, to the residual unless this is the first,
  // and leaves in activations.hidden what this block adds to it: this rank's part of the sum over
  // the ranks.
  virtual void forward(const ForwardPass& pass, bool isFirst) = 0;
};

}  // namespace uniproc
