#include "addon/model_values.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "addon/object_values.h"
#include "addon/values.h"
#include "base/error.h"

namespace uniproc {
namespace {

DType dtype(Napi::Object object) { return toDType(object.Get("dtype"), "dtype"); }

template <typename T, napi_typedarray_type type>
std::vector<T> toVector(Napi::Value value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    const char* of = type == napi_int32_array     ? "int32"
                     : type == napi_float32_array ? "float32"
                                                  : "float64";
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a typed array of " + of);
  }
  const auto array = value.As<Napi::TypedArrayOf<T>>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

std::vector<int32_t> int32s(Napi::Object object, const char* name) {
  return toInt32Vector(object.Get(name), name);
}

SamplingParams toSamplingParams(Napi::Object object) {
  SamplingParams params;
  params.temperature = number32(object, "temperature");
  params.topP = number32(object, "topP");
  params.topK = int32(object, "topK");
  params.minP = number32(object, "minP");
  params.presencePenalty = number32(object, "presencePenalty");
  params.frequencyPenalty = number32(object, "frequencyPenalty");
  params.repetitionPenalty = number32(object, "repetitionPenalty");
  const Napi::Value seed = object.Get("seed");
  if (!seed.IsBigInt()) throw Napi::TypeError::New(object.Env(), "seed must be a bigint");
  bool lossless = false;
  params.seed = seed.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throw Napi::TypeError::New(object.Env(), "seed must be an unsigned 64-bit bigint");
  params.minTokens = int32(object, "minTokens");
  params.numLogprobs = int32(object, "numLogprobs");
  params.numPromptLogprobs = int32(object, "numPromptLogprobs");
  return params;
}

}  // namespace

DType toDType(Napi::Value value, const char* name) {
  const std::string type = toString(value, name);
  if (type == "float32") return DType::kFloat32;
  if (type == "float16") return DType::kFloat16;
  if (type == "bfloat16") return DType::kBFloat16;
  throw Napi::TypeError::New(value.Env(), std::string("unknown ") + name + " '" + type + "'");
}

StoredTensor toStoredTensor(Napi::Object object) {
  return {toString(object.Get("path"), "path"), toInt64(object.Get("offset"), "offset"),
          dtype(object)};
}

ModelLimits toModelLimits(Napi::Object object) {
  ModelLimits limits;
  limits.maxNumSeqs = int32(object, "maxNumSeqs");
  limits.maxNumBatchedTokens = int32(object, "maxNumBatchedTokens");
  limits.maxModelLen = int32(object, "maxModelLen");
  limits.blockSize = int32(object, "blockSize");
  limits.numSteps = int32(object, "numSteps");
  limits.maxLogprobs = int32(object, "maxLogprobs");
  limits.listMemoryBytes = toInt64(object.Get("listMemoryBytes"), "listMemoryBytes");
  limits.enforceEager = boolean(object, "enforceEager");
  if (const Napi::Value groups = object.Get("kvCacheGroups"); !groups.IsUndefined()) {
    const Napi::Array array = toArray(groups, "kvCacheGroups");
    for (uint32_t i = 0; i < array.Length(); ++i) {
      limits.kvCacheGroups.push_back(toInt32(array.Get(i), "kvCacheGroups"));
    }
  }
  return limits;
}

namespace {

// By their order in StorageType.
constexpr const char* kBlockTypes[] = {"q4_0", "q4_1", "q5_0", "q5_1",   "q8_0",   "q2_k", "q3_k",
                                       "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4"};
constexpr int kFirstBlockType = static_cast<int>(StorageType::kQ4_0);

const char* nameOf(StorageType type) {
  if (isBlocks(type)) return kBlockTypes[static_cast<int>(type) - kFirstBlockType];
  switch (type) {
    case StorageType::kFloat16:
      return "float16";
    case StorageType::kBFloat16:
      return "bfloat16";
    case StorageType::kFloat8E4M3:
      return "float8_e4m3";
    case StorageType::kInt8:
      return "int8";
    case StorageType::kUInt4:
      return "uint4";
    case StorageType::kFloat4E2M1:
      return "float4_e2m1";
    default:
      return "float32";
  }
}

}  // namespace

std::optional<StorageType> blockTypeOf(const std::string& name) {
  for (size_t i = 0; i < std::size(kBlockTypes); ++i) {
    if (name == kBlockTypes[i]) {
      return static_cast<StorageType>(kFirstBlockType + static_cast<int>(i));
    }
  }
  return std::nullopt;
}

namespace {

Napi::Object fromWeightFormat(Napi::Env env, const WeightFormat& format) {
  auto object = Napi::Object::New(env);
  object.Set("type", nameOf(format.type));
  object.Set("scaleRows", format.scaleRows);
  object.Set("scaleCols", format.scaleCols);
  object.Set("hasZeros", format.hasZeros);
  object.Set("isOrdered", format.isOrdered);
  object.Set("roundsInput", format.roundsInput);
  return object;
}

Napi::Object fromShare(Napi::Env env, const Share& share) {
  auto object = Napi::Object::New(env);
  object.Set("size", static_cast<double>(share.of));
  object.Set("first", static_cast<double>(share.first));
  object.Set("count", static_cast<double>(share.count));
  return object;
}

}  // namespace

Napi::Array fromParameters(Napi::Env env, const std::vector<Parameter>& parameters) {
  const auto partOf = [](ParameterPart part) {
    switch (part) {
      case ParameterPart::kBias:
        return "bias";
      case ParameterPart::kScales:
        return "scales";
      case ParameterPart::kZeros:
        return "zeros";
      case ParameterPart::kOrder:
        return "order";
      default:
        return "weight";
    }
  };
  auto array = Napi::Array::New(env, parameters.size());
  for (uint32_t i = 0; i < parameters.size(); ++i) {
    const Napi::HandleScope scope(env);
    const Parameter& parameter = parameters[i];
    auto object = Napi::Object::New(env);
    const int32_t layer = parameter.name.layer;
    object.Set("layer", layer < 0 ? env.Null() : Napi::Value(Napi::Number::New(env, layer)));
    object.Set("module", parameter.name.module);
    object.Set("part", partOf(parameter.part));
    object.Set("isLinear", parameter.isLinear);
    object.Set("format", fromWeightFormat(env, parameter.format));
    object.Set("weight", static_cast<double>(parameter.weight));
    object.Set("experts", parameter.isOfExperts() ? fromShare(env, parameter.experts) : env.Null());
    auto shape = Napi::Array::New(env, parameter.shape.size());
    for (uint32_t d = 0; d < parameter.shape.size(); ++d) {
      const auto& [share, of] = parameter.shape[d];
      Napi::Object dimension = fromShare(env, share);
      dimension.Set("of", of);
      shape.Set(d, dimension);
    }
    object.Set("shape", shape);
    array.Set(i, object);
  }
  return array;
}

std::vector<ParameterSource> toParameterSources(Napi::Value value, const char* name) {
  constexpr size_t kWidth = 10;
  constexpr auto kLastType = static_cast<int64_t>(kLastStorageType);
  const auto numbers = toVector<double, napi_float64_array>(value, name);
  const auto fail = [&](size_t i, const char* what) {
    throw Napi::TypeError::New(
        value.Env(), std::string(name) + ": number " + std::to_string(i) + " must be " + what);
  };
  if (numbers.size() % kWidth != 0) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must have 10 numbers per source");
  }
  const auto integer = [&](size_t i) {
    if (!isSafeInteger(numbers[i])) fail(i, "an integer");
    return static_cast<int64_t>(numbers[i]);
  };
  const auto index = [&](size_t i) {
    const int64_t number = integer(i);
    if (number != static_cast<int32_t>(number)) fail(i, "a 32-bit integer");
    return static_cast<int32_t>(number);
  };
  std::vector<ParameterSource> sources(numbers.size() / kWidth);
  for (size_t i = 0; i < sources.size(); ++i) {
    const size_t first = i * kWidth;
    const int64_t type = integer(first + 4);
    if (type < 0 || type > kLastType) fail(first + 4, "a storage type");
    const int64_t layout = integer(first + 5);
    if (layout < 0 || layout > static_cast<int64_t>(kLastTensorLayout)) {
      fail(first + 5, "a tensor's layout");
    }
    sources[i] = {index(first),
                  index(first + 1),
                  index(first + 2),
                  integer(first + 3),
                  static_cast<StorageType>(type),
                  static_cast<TensorLayout>(layout),
                  {integer(first + 6), integer(first + 7)},
                  {integer(first + 8), integer(first + 9)}};
  }
  return sources;
}

std::vector<int32_t> toInt32Vector(Napi::Value value, const char* name) {
  return toVector<int32_t, napi_int32_array>(value, name);
}

namespace {

Request readRequest(Napi::Object object) {
  Request request;
  request.tokenIds = int32s(object, "tokenIds");
  request.numPromptTokens = int32(object, "numPromptTokens");
  request.blockIds = int32s(object, "blockIds");
  const Napi::Value listOffset = object.Get("listOffset");
  if (!listOffset.IsUndefined()) request.listOffset = toInt64(listOffset, "listOffset");
  const Napi::Object sampling = toObject(object.Get("sampling"), "sampling");
  request.sampling = toSamplingParams(sampling);
  request.logitBiasTokenIds = int32s(sampling, "logitBiasTokenIds");
  request.logitBiases =
      toVector<float, napi_float32_array>(sampling.Get("logitBiases"), "logitBiases");
  request.allowedTokenIds = int32s(sampling, "allowedTokenIds");
  request.badWordsTokenIds = int32s(sampling, "badWordsTokenIds");
  request.badWordsEnds = int32s(sampling, "badWordsEnds");
  request.stopTokenIds = int32s(sampling, "stopTokenIds");
  return request;
}

}  // namespace

Request toRequest(Napi::Value value) {
  try {
    return readRequest(toObject(value, "request"));
  } catch (const Napi::TypeError& error) {
    throw Error("REQUEST_INVALID", "a request's " + error.Message());
  }
}

Napi::Object fromStepBuffers(Napi::ArrayBuffer buffer, const StepBuffers& memory) {
  const Napi::Env env = buffer.Env();
  Napi::Object object = Napi::Object::New(env);
  const auto view = [&]<typename T>(const char* name, std::span<T> array) {
    const size_t offset = reinterpret_cast<std::byte*>(array.data()) - memory.data();
    object.Set(name, Napi::TypedArrayOf<T>::New(env, array.size(), buffer, offset));
  };
  view("slots", memory.slots);
  view("numComputedTokens", memory.numComputedTokens);
  view("numScheduledTokens", memory.numScheduledTokens);
  view("blockUpdates", memory.blockUpdates);
  view("sampledRows", memory.sampledRows);
  view("promptLogprobRows", memory.promptLogprobRows);
  view("sampledTokenIds", memory.sampledTokenIds);
  view("numNans", memory.numNans);
  view("logprobTokenIds", memory.logprobTokenIds);
  view("logprobs", memory.logprobs);
  view("logprobRanks", memory.logprobRanks);
  view("promptLogprobTokenIds", memory.promptLogprobTokenIds);
  view("promptLogprobs", memory.promptLogprobs);
  view("promptLogprobRanks", memory.promptLogprobRanks);
  view("promptNumNans", memory.promptNumNans);
  view("pooledSizes", memory.pooledSizes);
  view("pooled", memory.pooled);
  return object;
}

}  // namespace uniproc
