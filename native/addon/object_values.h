// Properties of JavaScript objects. They throw a TypeError that names the invalid property.
#pragma once

#include <napi.h>

#include <cstdint>

#include "addon/values.h"

namespace uniproc {

inline double number(Napi::Object object, const char* name) {
  return toNumber(object.Get(name), name);
}

inline float number32(Napi::Object object, const char* name) {
  return static_cast<float>(number(object, name));
}

inline int32_t int32(Napi::Object object, const char* name) {
  return toInt32(object.Get(name), name);
}

inline bool boolean(Napi::Object object, const char* name) {
  return toBool(object.Get(name), name);
}

}  // namespace uniproc
