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

// Where a module is: in a layer or none (-1), and there in an expert or none (-1).
struct ModuleName {
  int32_t layer = -1;
  int32_t expert = -1;
  const char* module = "";  // "attention.q", ...

  std::string toString() const;  // "layers.3.attention.q"
};

enum class ParameterPart : uint8_t { kWeight, kBias, kScales };

// One tensor that a checkpoint has for this model.
struct Parameter {
  ModuleName name;
  ParameterPart part = ParameterPart::kWeight;
  std::vector<Dimension> shape;  // one or two
  bool isLinear = false;         // the matrix of a linear layer, which may have any WeightFormat
  WeightFormat format;           // of the module's matrix

  const Share& rows() const { return shape[0].share; }
  Share cols() const { return shape.size() > 1 ? shape[1].share : Share::all(1); }
  // Whether this rank has anything of it.
  bool isHere() const { return rows().count > 0 && cols().count > 0; }
  std::string toString() const;  // "layers.3.attention.q.weight"
};

}  // namespace uniproc
