#include "addon_testing/ops_values.h"

#include <cmath>
#include <optional>
#include <string>

#include "addon/model_values.h"
#include "addon/values.h"
#include "addon_testing/handles.h"

namespace uniproc {
namespace {

template <typename T = void>
T* dataOf(Napi::Object object, const char* name) {
  return toData<T>(object.Get(name), name);
}

}  // namespace

int32_t int32Of(Napi::Object object, const char* name) { return toInt32(object.Get(name), name); }

StorageType toStorageType(Napi::Value value) {
  const std::string name = toString(value, "dtype");
  if (name == "float32" || name == "int32") return StorageType::kFloat32;
  if (name == "float16") return StorageType::kFloat16;
  if (name == "bfloat16") return StorageType::kBFloat16;
  if (name == "float8_e4m3") return StorageType::kFloat8E4M3;
  if (name == "int8") return StorageType::kInt8;
  if (name == "uint4") return StorageType::kUInt4;
  if (name == "float4_e2m1") return StorageType::kFloat4E2M1;
  if (const std::optional<StorageType> blocks = blockTypeOf(name)) return *blocks;
  throw Napi::TypeError::New(value.Env(), "unknown dtype '" + name + "'");
}

Weight toWeight(Napi::Value value) {
  if (isNothing(value)) return {};
  const Napi::Object object = toObject(value, "weight");
  const Tensor& tensor = toTensor(object.Get("data"), "data");
  const Napi::Value offset = object.Get("offset");
  return {tensor.buffer.data(), tensor.dtype(), int32Of(object, "rows"), int32Of(object, "cols"),
          isNothing(offset) ? 0.0f : static_cast<float>(toNumber(offset, "offset"))};
}

LinearWeight toLinearWeight(Napi::Value value, const Weight& bias) {
  const Napi::Object object = toObject(value, "weight");
  const Tensor& tensor = toTensor(object.Get("data"), "data");
  if (isNothing(object.Get("scales")) && isFloat(tensor.type)) {
    return LinearWeight::of(toWeight(value), bias);
  }
  LinearWeight weight;
  weight.data = tensor.buffer.data();
  weight.format = {tensor.type};
  weight.dtype = toDType(object.Get("dtype"), "dtype");
  weight.rows = int32Of(object, "rows");
  weight.cols = int32Of(object, "cols");
  weight.bias = bias;
  const Napi::Value isArranged = object.Get("isArranged");
  weight.isArranged = !isNothing(isArranged) && toBool(isArranged, "isArranged");
  if (isBlocks(tensor.type)) return weight;
  weight.format.scaleRows = int32Of(object, "scaleRows");
  weight.format.scaleCols = int32Of(object, "scaleCols");
  weight.scales = dataOf(object, "scales");
  weight.format.roundsInput = object.Get("roundsInput").ToBoolean();
  if (!isNothing(object.Get("zeros"))) {
    weight.format.hasZeros = true;
    weight.zeros = dataOf<uint8_t>(object, "zeros");
  }
  if (!isNothing(object.Get("order"))) {
    weight.format.isOrdered = true;
    weight.order = dataOf<int32_t>(object, "order");
    if (!isNothing(object.Get("inputCols"))) weight.inputCols = int32Of(object, "inputCols");
  }
  return weight;
}

Routing toRouting(Napi::Value value) {
  const Napi::Object object = toObject(value, "routing");
  return {int32Of(object, "numTokens"),    int32Of(object, "numExperts"),
          int32Of(object, "topK"),         int32Of(object, "firstLocal"),
          int32Of(object, "numLocal"),     dataOf<int32_t>(object, "expertIds"),
          dataOf<float>(object, "weights")};
}

Batch toBatch(Napi::Value value) {
  const Napi::Object object = toObject(value, "batch");
  Batch batch;
  batch.numRows = int32Of(object, "numRows");
  batch.numTokens = int32Of(object, "numTokens");
  batch.slots = dataOf<int32_t>(object, "slots");
  batch.numComputedTokens = dataOf<int32_t>(object, "numComputedTokens");
  batch.queryStarts = dataOf<int32_t>(object, "queryStarts");
  batch.tokenIds = dataOf<int32_t>(object, "tokenIds");
  batch.positions = dataOf<int32_t>(object, "positions");
  batch.cacheSlots = dataOf<int32_t>(object, "cacheSlots");
  batch.maxQueryLen = int32Of(object, "maxQueryLen");
  batch.numDecodeRows = int32Of(object, "numDecodeRows");
  batch.isDecode = toBool(object.Get("isDecode"), "isDecode");
  batch.hasFewKeys = toBool(object.Get("hasFewKeys"), "hasFewKeys");
  if (!isNothing(object.Get("cacheSlotStride"))) {
    batch.cacheSlotStride = int32Of(object, "cacheSlotStride");
  }
  return batch;
}

AttentionShape toAttentionShape(Napi::Value value) {
  const Napi::Object object = toObject(value, "shape");
  const int32_t headDim = int32Of(object, "headDim");
  const Napi::Value scale = object.Get("scale");
  const Napi::Value softcap = object.Get("softcap");
  const Napi::Value isChunked = object.Get("isChunked");
  const Napi::Value hasKeys = object.Get("hasKeys");
  return {
      int32Of(object, "numHeads"),
      int32Of(object, "numKvHeads"),
      headDim,
      int32Of(object, "slidingWindow"),
      static_cast<float>(isNothing(scale) ? 1.0 / std::sqrt(headDim) : toNumber(scale, "scale")),
      isNothing(softcap) ? 0.0f : static_cast<float>(toNumber(softcap, "softcap")),
      toWeight(object.Get("sinks")),
      !isNothing(isChunked) && toBool(isChunked, "isChunked"),
      isNothing(hasKeys) || toBool(hasKeys, "hasKeys")};
}

KvCache toKvCache(Napi::Value value) {
  const Napi::Object object = toObject(value, "cache");
  const Tensor& keys = toTensor(object.Get("keys"), "keys");
  const auto scaleOf = [&](const char* name) {
    const Napi::Value scale = object.Get(name);
    return isNothing(scale) ? 1.0f : static_cast<float>(toNumber(scale, name));
  };
  const Napi::Value dtype = object.Get("dtype");
  return {keys.buffer.data(),
          dataOf(object, "values"),
          keys.type,
          isNothing(dtype) ? keys.dtype() : toDType(dtype, "dtype"),
          int32Of(object, "blockSize"),
          scaleOf("keyScale"),
          scaleOf("valueScale")};
}

Logprobs toLogprobs(Napi::Value value) {
  if (isNothing(value)) return {};
  const Napi::Object object = toObject(value, "logprobs");
  return {dataOf<int32_t>(object, "tokenIds"), dataOf<float>(object, "logprobs"),
          dataOf<int32_t>(object, "ranks"), int32Of(object, "maxLogprobs")};
}

const RequestTable& toTable(Napi::Value value) {
  return fromHandle<Requests>(value, "requests", kRequestsTag).slots.table();
}

std::pair<uint8_t*, size_t> toBytes(Napi::Value value, const char* name) {
  if (!value.IsTypedArray()) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a typed array");
  }
  const auto array = value.As<Napi::TypedArray>();
  return {static_cast<uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset(),
          array.ByteLength()};
}

Napi::Object fromFigures(Napi::Env env, double total, double free) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("total", total);
  object.Set("free", free);
  return object;
}

}  // namespace uniproc
