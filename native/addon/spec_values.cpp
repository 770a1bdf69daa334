// ModelSpec of JavaScript objects.
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "addon/model_values.h"
#include "addon/object_values.h"
#include "addon/values.h"

namespace uniproc {
namespace {

StorageType toStorageType(Napi::Value value, const char* name) {
  if (value.IsString()) {
    const std::string type = value.ToString().Utf8Value();
    if (type == "float8_e4m3") return StorageType::kFloat8E4M3;
    if (type == "int8") return StorageType::kInt8;
    if (type == "uint4") return StorageType::kUInt4;
    if (type == "float4_e2m1") return StorageType::kFloat4E2M1;
    if (const std::optional<StorageType> blocks = blockTypeOf(type)) return *blocks;
  }
  return storageOf(toDType(value, name));
}

std::vector<double> numbers(Napi::Object object, const char* name) {
  const Napi::Array array = toArray(object.Get(name), name);
  std::vector<double> values;
  for (uint32_t i = 0; i < array.Length(); ++i) values.push_back(toNumber(array.Get(i), name));
  return values;
}

std::vector<float> floats(Napi::Object object, const char* name) {
  std::vector<float> values;
  for (const double value : numbers(object, name)) values.push_back(static_cast<float>(value));
  return values;
}

std::vector<int32_t> integers(Napi::Object object, const char* name) {
  const Napi::Array array = toArray(object.Get(name), name);
  std::vector<int32_t> values;
  for (uint32_t i = 0; i < array.Length(); ++i) values.push_back(toInt32(array.Get(i), name));
  return values;
}

RopeScaling toRopeScaling(Napi::Object object) {
  RopeScaling scaling;
  const std::string type = toString(object.Get("type"), "scaling.type");
  if (type == "default") return scaling;
  if (type == "longrope") {
    scaling.type = RopeScaling::Type::kLongRope;
    scaling.originalMaxPositionEmbeddings = number(object, "originalMaxPositionEmbeddings");
    scaling.attentionFactor = number(object, "attentionFactor");
    scaling.shortFactors = numbers(object, "shortFactors");
    scaling.longFactors = numbers(object, "longFactors");
    return scaling;
  }
  scaling.factor = number(object, "factor");
  if (type == "proportional") {
    scaling.type = RopeScaling::Type::kProportional;
    scaling.rotatedDim = int32(object, "rotatedDim");
    return scaling;
  }
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
    return scaling;
  }
  scaling.originalMaxPositionEmbeddings = number(object, "originalMaxPositionEmbeddings");
  if (type == "dynamic") {
    scaling.type = RopeScaling::Type::kDynamic;
    return scaling;
  }
  if (type == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
    scaling.lowFreqFactor = number(object, "lowFreqFactor");
    scaling.highFreqFactor = number(object, "highFreqFactor");
    return scaling;
  }
  if (type != "yarn")
    throw Napi::TypeError::New(object.Env(), "unknown rope scaling type '" + type + "'");
  scaling.type = RopeScaling::Type::kYarn;
  scaling.betaFast = number(object, "betaFast");
  scaling.betaSlow = number(object, "betaSlow");
  scaling.attentionFactor = number(object, "attentionFactor");
  scaling.truncate = boolean(object, "truncate");
  return scaling;
}

std::vector<RopeSpec> toRopes(Napi::Array array) {
  std::vector<RopeSpec> ropes;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Object object = toObject(array.Get(i), "ropes");
    ropes.push_back({number(object, "theta"),
                     toRopeScaling(toObject(object.Get("scaling"), "scaling")),
                     int32(object, "rotaryDim")});
  }
  return ropes;
}

QkNorm toQkNorm(Napi::Value value) {
  if (value.IsNull()) return QkNorm::kNone;
  const std::string of = toString(value, "qkNorm");
  if (of == "head") return QkNorm::kHead;
  if (of == "projection") return QkNorm::kProjection;
  if (of == "unweighted") return QkNorm::kUnweighted;
  throw Napi::TypeError::New(value.Env(), "unknown qkNorm '" + of + "'");
}

Activation toActivation(Napi::Value value) {
  const std::string name = toString(value, "activation");
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "geluTanh") return Activation::kGeluTanh;
  if (name == "clampedSwiglu") return Activation::kClampedSwiglu;
  throw Napi::TypeError::New(value.Env(), "unknown activation '" + name + "'");
}

bool isNothing(Napi::Value value) { return value.IsNull() || value.IsUndefined(); }

ExpertsSpec toExpertsSpec(Napi::Object object) {
  ExpertsSpec experts;
  experts.numExperts = int32(object, "numExperts");
  experts.numExpertsPerToken = int32(object, "numExpertsPerToken");
  experts.intermediateSize = int32(object, "intermediateSize");
  experts.normTopkProb = boolean(object, "normTopkProb");
  experts.sigmoidScores = boolean(object, "sigmoidScores");
  experts.scoreBias = boolean(object, "scoreBias");
  experts.scalesInput = boolean(object, "scalesInput");
  experts.numGroups = int32(object, "numGroups");
  experts.numChosenGroups = int32(object, "numChosenGroups");
  experts.weightScale = number32(object, "weightScale");
  experts.routerBias = boolean(object, "routerBias");
  experts.routerNorm = boolean(object, "routerNorm");
  experts.expertScales = boolean(object, "expertScales");
  experts.bias = boolean(object, "bias");
  experts.sharedIntermediateSize = int32(object, "sharedIntermediateSize");
  experts.sharedGate = boolean(object, "sharedGate");
  experts.besideMlp = boolean(object, "besideMlp");
  const Napi::Array layers = toArray(object.Get("layers"), "experts.layers");
  for (uint32_t i = 0; i < layers.Length(); ++i) {
    experts.layers.push_back(toBool(layers.Get(i), "experts.layers"));
  }
  return experts;
}

OtherHeads toOtherHeads(Napi::Object object) {
  OtherHeads heads{int32(object, "numKvHeads"), int32(object, "headDim"), {}};
  const Napi::Array layers = toArray(object.Get("layers"), "otherHeads.layers");
  for (uint32_t i = 0; i < layers.Length(); ++i) {
    heads.layers.push_back(toBool(layers.Get(i), "otherHeads.layers"));
  }
  return heads;
}

std::map<std::string, WeightFormat> toWeightFormats(Napi::Object object) {
  std::map<std::string, WeightFormat> formats;
  const Napi::Array modules = object.GetPropertyNames();
  for (uint32_t i = 0; i < modules.Length(); ++i) {
    const std::string module = toString(modules.Get(i), "weightFormats");
    const Napi::Object format = toObject(object.Get(module), "a weight's format");
    formats[module] = {toStorageType(format.Get("type"), "type"),
                       int32(format, "scaleRows"),
                       int32(format, "scaleCols"),
                       boolean(format, "hasZeros"),
                       boolean(format, "isOrdered"),
                       boolean(format, "roundsInput")};
  }
  return formats;
}

}  // namespace

ModelSpec toModelSpec(Napi::Object object) {
  ModelSpec spec;
  spec.dtype = toDType(object.Get("dtype"), "dtype");
  spec.vocabSize = int32(object, "vocabSize");
  spec.hiddenSize = int32(object, "hiddenSize");
  spec.intermediateSize = int32(object, "intermediateSize");
  spec.numLayers = int32(object, "numLayers");
  spec.numHeads = int32(object, "numHeads");
  spec.numKvHeads = int32(object, "numKvHeads");
  spec.headDim = int32(object, "headDim");
  if (const Napi::Value heads = object.Get("otherHeads"); !isNothing(heads)) {
    spec.otherHeads = toOtherHeads(toObject(heads, "otherHeads"));
  }
  spec.rmsNormEps = number32(object, "rmsNormEps");
  spec.ropes = toRopes(toArray(object.Get("ropes"), "ropes"));
  spec.layerRopes = integers(object, "layerRopes");
  spec.interleavedRope = boolean(object, "interleavedRope");
  spec.slidingWindows = integers(object, "slidingWindows");
  spec.chunkedWindows = boolean(object, "chunkedWindows");
  if (!isNothing(object.Get("kvLayers"))) spec.kvLayers = integers(object, "kvLayers");
  spec.doubleWideMlps = boolean(object, "doubleWideMlps");
  spec.perLayerInputSize = int32(object, "perLayerInputSize");
  spec.attentionSinks = boolean(object, "attentionSinks");
  spec.qkvBias = boolean(object, "qkvBias");
  spec.outputBias = boolean(object, "outputBias");
  spec.mlpBias = boolean(object, "mlpBias");
  spec.qkNorm = toQkNorm(object.Get("qkNorm"));
  spec.valueNorm = boolean(object, "valueNorm");
  spec.activation = toActivation(object.Get("activation"));
  spec.inputNorms = boolean(object, "inputNorms");
  spec.outputNorms = boolean(object, "outputNorms");
  spec.layerScales = boolean(object, "layerScales");
  spec.normOffset = number32(object, "normOffset");
  spec.embeddingScale = number32(object, "embeddingScale");
  spec.roundsEmbeddingScale = boolean(object, "roundsEmbeddingScale");
  spec.attentionScale = number32(object, "attentionScale");
  spec.queryScaleBeta = number32(object, "queryScaleBeta");
  spec.queryScalePeriod = number32(object, "queryScalePeriod");
  spec.queryScaleShift = int32(object, "queryScaleShift");
  spec.queryScaleUnrotatedOnly = boolean(object, "queryScaleUnrotatedOnly");
  spec.residualScale = number32(object, "residualScale");
  spec.logitScale = number32(object, "logitScale");
  spec.attentionSoftcap = number32(object, "attentionSoftcap");
  spec.logitSoftcap = number32(object, "logitSoftcap");
  spec.tieWordEmbeddings = boolean(object, "tieWordEmbeddings");
  spec.poolsLastToken = boolean(object, "poolsLastToken");
  if (const Napi::Value experts = object.Get("experts"); !isNothing(experts)) {
    spec.experts = toExpertsSpec(toObject(experts, "experts"));
  }
  if (const Napi::Value formats = object.Get("weightFormats"); !isNothing(formats)) {
    spec.weightFormats = toWeightFormats(toObject(formats, "weightFormats"));
  }
  if (const Napi::Value cache = object.Get("fp8Cache"); !isNothing(cache)) {
    const Napi::Object scales = toObject(cache, "fp8Cache");
    spec.fp8Cache = Fp8CacheSpec{floats(scales, "keyScales"), floats(scales, "valueScales")};
  }
  return spec;
}

}  // namespace uniproc
