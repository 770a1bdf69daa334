#include "model/parameter.h"

namespace uniproc {

std::string ModuleName::toString() const {
  std::string name;
  if (layer >= 0) name.append("layers.").append(std::to_string(layer)).append(".");
  name.append(module);
  if (expert >= 0) name.append(".").append(std::to_string(expert));
  return name;
}

std::string Parameter::toString() const {
  const char* const suffix = part == ParameterPart::kWeight ? ".weight"
                             : part == ParameterPart::kBias ? ".bias"
                                                            : ".scales";
  return name.toString() + suffix;
}

}  // namespace uniproc
