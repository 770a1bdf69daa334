// What a model's blocks declare of their parameters: Parameter of lib/native/index.ts.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/spec.h"

namespace uniproc {

// A dimension of a tensor as the checkpoint has it, and this rank's share of that.
struct Dimension {
  Share share;
  const char* of = "";  // the sizes of the spec that it is made of
};

// A module of a layer, or of none (-1). All experts of a layer have one name.
struct ModuleName {
  int32_t layer = -1;
  const char* module = "";  // "attention.q", ...

  std::string toString() const;  // "layers.3.attention.q"
};

enum class ParameterPart : uint8_t { kWeight, kBias, kScales };

// One tensor that a checkpoint has for this model, or one of each expert.
struct Parameter {
  ModuleName name;
  ParameterPart part = ParameterPart::kWeight;
  Share experts;                 // each with a tensor of this shape; of 0: a single tensor
  std::vector<Dimension> shape;  // one or two
  bool isLinear = false;         // the matrix of a linear layer, which may have any WeightFormat
  WeightFormat format;           // of the module's matrix
  size_t weight = 0;  // which weight in memory the matrix is in: its parameters have one format

  const Share& rows() const { return shape[0].share; }
  Share cols() const { return shape.size() > 1 ? shape[1].share : Share::all(1); }
  bool isOfExperts() const { return experts.of > 0; }
  // Tensors that this rank has anything of.
  int64_t numTensors() const {
    if (rows().count == 0 || cols().count == 0) return 0;
    return isOfExperts() ? experts.count : 1;
  }
  // Which of these the tensor of `expert` is, or -1; a parameter without experts has expert -1.
  int64_t tensorOf(int32_t expert) const {
    const int64_t tensor = int64_t{expert} - (isOfExperts() ? experts.first : -1);
    return tensor >= 0 && tensor < numTensors() ? tensor : -1;
  }
  // "layers.3.attention.q.weight", "layers.3.experts.up.7.weight"
  std::string toString(int64_t tensor = 0) const;
};

}  // namespace uniproc
