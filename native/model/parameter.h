// Parameters declared by a model's blocks; Parameter of lib/native/index.ts.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/spec.h"

namespace uniproc {

// A dimension of a checkpoint's tensor, and this rank's share of it.
struct Dimension {
  Share share;
  const char* of = "";  // product of the spec's sizes that it equals
};

// The order of each head's rows in memory. A rotation turns pairs (i, i + headDim / 2) of a head;
// the files' heads have pairs (i, i + rotaryDim / 2), then the elements that are not rotated.
// Products of queries and keys do not depend on the order. Heads of size 0: as in the files.
// Interleaved: the files' heads have pairs (2i, 2i + 1), all rotated.
struct HeadOrder {
  int32_t headDim = 0;
  int32_t rotaryDim = 0;
  bool isInterleaved = false;
};

// Rows [first, first + count) of a rank's share of a tensor.
struct RowRun {
  int64_t first = 0;
  int64_t count = 0;
};

// A module and its layer (-1: none). All experts of a layer share one name.
struct ModuleName {
  int32_t layer = -1;
  const char* module = "";  // "attention.q", ...

  std::string toString() const;  // "layers.3.attention.q"
};

// kOrder: of each column of a linear layer's matrix, its group.
enum class ParameterPart : uint8_t { kWeight, kBias, kScales, kZeros, kOrder };

// One tensor of the model's checkpoint, or one per expert.
struct Parameter {
  ModuleName name;
  ParameterPart part = ParameterPart::kWeight;
  Share experts;                 // one tensor of this shape each; of 0: a single tensor
  std::vector<Dimension> shape;  // one or two
  bool isLinear = false;         // a linear layer's matrix, which may have any WeightFormat
  WeightFormat format;           // of the module's matrix
  size_t weight = 0;  // index of the weight that holds the matrix; its parameters have one format
  HeadOrder order;

  const Share& rows() const { return shape[0].share; }
  Share cols() const { return shape.size() > 1 ? shape[1].share : Share::all(1); }
  // The rank's rows in their order in memory.
  std::vector<RowRun> rowRuns() const;
  bool isOfExperts() const { return experts.of > 0; }
  // Number of tensors that this rank holds any part of.
  int64_t numTensors() const {
    if (rows().count == 0 || cols().count == 0) return 0;
    return isOfExperts() ? experts.count : 1;
  }
  // The index of the tensor of `expert` (-1 for a parameter without experts), or -1.
  int64_t tensorOf(int32_t expert) const {
    const int64_t tensor = int64_t{expert} - (isOfExperts() ? experts.first : -1);
    return tensor >= 0 && tensor < numTensors() ? tensor : -1;
  }
  // "layers.3.attention.q.weight", "layers.3.experts.up.7.weight"
  std::string toString(int64_t tensor = 0) const;
};

}  // namespace uniproc
