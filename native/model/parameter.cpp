#include "model/parameter.h"

namespace uniproc {

std::string ModuleName::toString() const {
  std::string name;
  if (layer >= 0) name.append("layers.").append(std::to_string(layer)).append(".");
  return name.append(module);
}

std::string Parameter::toString(int64_t tensor) const {
  const char* const suffix = part == ParameterPart::kWeight ? ".weight"
                             : part == ParameterPart::kBias ? ".bias"
                                                            : ".scales";
  std::string text = name.toString();
  if (isOfExperts()) text.append(".").append(std::to_string(experts.first + tensor));
  return text + suffix;
}

}  // namespace uniproc
