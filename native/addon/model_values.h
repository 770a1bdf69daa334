// Conversions of JavaScript objects to the model's types; see lib/native/index.ts. They throw a
// TypeError that names the invalid property; toRequest throws Error REQUEST_INVALID instead.
#pragma once

#include <napi.h>

#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/parameters.h"
#include "model/spec.h"
#include "runner/request.h"
#include "runner/step_buffers.h"

namespace uniproc {

DType toDType(Napi::Value value, const char* name);
StoredTensor toStoredTensor(Napi::Object object);
// The type of GGUF's blocks of that name, such as "q4_k".
std::optional<StorageType> blockTypeOf(const std::string& name);
ModelSpec toModelSpec(Napi::Object object);
ModelLimits toModelLimits(Napi::Object object);
// The declared parameters as JavaScript objects: Parameter of lib/native/index.ts.
Napi::Array fromParameters(Napi::Env env, const std::vector<Parameter>& parameters);
// From a Float64Array [numSources, 5]: parameter, expert or -1, file, offset, storage type's index.
std::vector<ParameterSource> toParameterSources(Napi::Value value, const char* name);
Request toRequest(Napi::Value value);
std::vector<int32_t> toInt32Vector(Napi::Value value, const char* name);

// Typed arrays over `memory`, which `buffer` wraps.
Napi::Object fromStepBuffers(Napi::ArrayBuffer buffer, const StepBuffers& memory);

}  // namespace uniproc
