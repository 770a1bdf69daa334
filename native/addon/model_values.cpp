#include "addon/model_values.h"

#include <algorithm>
#include <string>

#include "addon/values.h"
#include "base/error.h"

namespace uniproc {
namespace {

double number(Napi::Object object, const char* name) { return toNumber(object.Get(name), name); }

float number32(Napi::Object object, const char* name) {
  return static_cast<float>(number(object, name));
}

int32_t int32(Napi::Object object, const char* name) { return toInt32(object.Get(name), name); }

bool boolean(Napi::Object object, const char* name) { return toBool(object.Get(name), name); }

DType dtype(Napi::Object object) { return toDType(object.Get("dtype"), "dtype"); }

StorageType toStorageType(Napi::Value value, const char* name) {
  if (value.IsString() && value.ToString().Utf8Value() == "float8_e4m3") {
    return StorageType::kFloat8E4M3;
  }
  return storageOf(toDType(value, name));
}

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

RopeScaling toRopeScaling(Napi::Object object) {
  RopeScaling scaling;
  const std::string type = toString(object.Get("type"), "ropeScaling.type");
  if (type == "default") return scaling;
  scaling.factor = number(object, "factor");
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
    return scaling;
  }
  scaling.originalMaxPositionEmbeddings = number(object, "originalMaxPositionEmbeddings");
  if (type == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
    scaling.lowFreqFactor = number(object, "lowFreqFactor");
    scaling.highFreqFactor = number(object, "highFreqFactor");
    return scaling;
  }
  if (type != "yarn")
    throw Napi::TypeError::New(object.Env(), "unknown ropeScaling type '" + type + "'");
  scaling.type = RopeScaling::Type::kYarn;
  scaling.betaFast = number(object, "betaFast");
  scaling.betaSlow = number(object, "betaSlow");
  scaling.attentionFactor = number(object, "attentionFactor");
  scaling.truncate = boolean(object, "truncate");
  return scaling;
}

bool isNothing(Napi::Value value) { return value.IsNull() || value.IsUndefined(); }

ExpertsSpec toExpertsSpec(Napi::Object object) {
  ExpertsSpec experts;
  experts.numExperts = int32(object, "numExperts");
  experts.numExpertsPerToken = int32(object, "numExpertsPerToken");
  experts.intermediateSize = int32(object, "intermediateSize");
  experts.normTopkProb = boolean(object, "normTopkProb");
  const Napi::Array layers = toArray(object.Get("layers"), "experts.layers");
  for (uint32_t i = 0; i < layers.Length(); ++i) {
    experts.layers.push_back(toBool(layers.Get(i), "experts.layers"));
  }
  return experts;
}

std::map<std::string, WeightFormat> toWeightFormats(Napi::Object object) {
  std::map<std::string, WeightFormat> formats;
  const Napi::Array modules = object.GetPropertyNames();
  for (uint32_t i = 0; i < modules.Length(); ++i) {
    const std::string module = toString(modules.Get(i), "weightFormats");
    const Napi::Object format = toObject(object.Get(module), "a weight's format");
    formats[module] = {toStorageType(format.Get("type"), "type"), int32(format, "scaleRows"),
                       int32(format, "scaleCols")};
  }
  return formats;
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

ModelSpec toModelSpec(Napi::Object object) {
  ModelSpec spec;
  spec.dtype = dtype(object);
  spec.vocabSize = int32(object, "vocabSize");
  spec.hiddenSize = int32(object, "hiddenSize");
  spec.intermediateSize = int32(object, "intermediateSize");
  spec.numLayers = int32(object, "numLayers");
  spec.numHeads = int32(object, "numHeads");
  spec.numKvHeads = int32(object, "numKvHeads");
  spec.headDim = int32(object, "headDim");
  spec.rmsNormEps = number32(object, "rmsNormEps");
  spec.ropeTheta = number(object, "ropeTheta");
  spec.ropeScaling = toRopeScaling(toObject(object.Get("ropeScaling"), "ropeScaling"));
  const Napi::Array windows = toArray(object.Get("slidingWindows"), "slidingWindows");
  for (uint32_t i = 0; i < windows.Length(); ++i) {
    spec.slidingWindows.push_back(toInt32(windows.Get(i), "slidingWindows"));
  }
  spec.qkvBias = boolean(object, "qkvBias");
  spec.outputBias = boolean(object, "outputBias");
  spec.mlpBias = boolean(object, "mlpBias");
  spec.qkNorm = boolean(object, "qkNorm");
  spec.tieWordEmbeddings = boolean(object, "tieWordEmbeddings");
  if (const Napi::Value experts = object.Get("experts"); !isNothing(experts)) {
    spec.experts = toExpertsSpec(toObject(experts, "experts"));
  }
  if (const Napi::Value formats = object.Get("weightFormats"); !isNothing(formats)) {
    spec.weightFormats = toWeightFormats(toObject(formats, "weightFormats"));
  }
  return spec;
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
  return limits;
}

namespace {

const char* nameOf(StorageType type) {
  switch (type) {
    case StorageType::kFloat16:
      return "float16";
    case StorageType::kBFloat16:
      return "bfloat16";
    case StorageType::kFloat8E4M3:
      return "float8_e4m3";
    default:
      return "float32";
  }
}

Napi::Object fromWeightFormat(Napi::Env env, const WeightFormat& format) {
  auto object = Napi::Object::New(env);
  object.Set("type", nameOf(format.type));
  object.Set("scaleRows", format.scaleRows);
  object.Set("scaleCols", format.scaleCols);
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
  constexpr size_t kWidth = 5;
  constexpr auto kLastType = static_cast<int64_t>(StorageType::kFloat8E4M3);
  const auto numbers = toVector<double, napi_float64_array>(value, name);
  const auto fail = [&](size_t i, const char* what) {
    throw Napi::TypeError::New(
        value.Env(), std::string(name) + ": number " + std::to_string(i) + " must be " + what);
  };
  if (numbers.size() % kWidth != 0) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must have 5 numbers per source");
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
    sources[i] = {index(first), index(first + 1), index(first + 2), integer(first + 3),
                  static_cast<StorageType>(type)};
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
  return object;
}

}  // namespace uniproc
