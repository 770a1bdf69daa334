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

// A module's location: its layer (-1: none) and expert (-1: none).
struct ModuleName {
  int32_t layer = -1;
  int32_t expert = -1;
  const char* module = "";  // "attention.q", ...

  std::string toString() const;  // "layers.3.attention.q"
};

enum class ParameterPart : uint8_t { kWeight, kBias, kScales };

// One tensor of the model's checkpoint.
struct Parameter {
  ModuleName name;
  ParameterPart part = ParameterPart::kWeight;
  std::vector<Dimension> shape;  // one or two
  bool isLinear = false;         // a linear layer's matrix, which may have any WeightFormat
  WeightFormat format;           // of the module's matrix

  const Share& rows() const { return shape[0].share; }
  Share cols() const { return shape.size() > 1 ? shape[1].share : Share::all(1); }
  // Whether this rank holds any part of it.
  bool isLocal() const { return rows().count > 0 && cols().count > 0; }
  std::string toString() const;  // "layers.3.attention.q.weight"
};

}  // namespace uniproc
