#include <algorithm>
#include <memory>
#include <utility>

#include "addon/model_values.h"
#include "addon/values.h"
#include "addon_testing/handles.h"
#include "addon_testing/ops_binding.h"
#include "addon_testing/ops_values.h"

namespace uniproc {
namespace {

// Bytes for the lists of all requests of a table, and at most for one.
constexpr int64_t kListMemory = 1 << 28;
constexpr int64_t kMaxListBytes = 1 << 20;

}  // namespace

// makeRequests({ vocabSize, maxNumSeqs, maxModelLen, blockSize, maxLogprobs })
Napi::Value OpsBinding::makeRequests(const Info& info) {
  const Napi::Object object = toObject(info[0], "limits");
  ModelSpec spec;
  spec.vocabSize = int32Of(object, "vocabSize");
  ModelLimits limits;
  limits.maxNumSeqs = int32Of(object, "maxNumSeqs");
  limits.maxModelLen = int32Of(object, "maxModelLen");
  limits.blockSize = int32Of(object, "blockSize");
  limits.maxLogprobs = int32Of(object, "maxLogprobs");
  const int64_t share = std::min(kListMemory / std::max(limits.maxNumSeqs, 1), kMaxListBytes);
  const int64_t listBytes = share - share % RequestLimits::kListAlignment;
  limits.listMemoryBytes = limits.maxNumSeqs * listBytes;
  auto requests =
      std::make_unique<Requests>(Requests{ops_, RequestSlots(*ops_, spec, limits), listBytes});
  return toHandle(info.Env(), std::move(requests), kRequestsTag);
}

// addRequest(requests, slot, request, numCacheBlocks)
Napi::Value OpsBinding::addRequest(const Info& info) {
  auto& requests = fromHandle<Requests>(info[0], "requests", kRequestsTag);
  const int32_t slot = toInt32(info[1], "slot");
  Request request = toRequest(info[2]);
  request.listOffset = slot * requests.listBytes;
  requests.slots.add(*ops_, slot, request, toInt32(info[3], "numCacheBlocks"));
  return info.Env().Undefined();
}

// readRequest(requests, slot): the device's { tokenIds, blockTable }.
Napi::Value OpsBinding::readRequest(const Info& info) {
  const RequestTable& table = toTable(info[0]);
  const int32_t slot = toInt32(info[1], "slot");
  int32_t numTokens = 0;
  ops_->copyToHost(&numTokens, table.numTokens + slot, sizeof numTokens);
  const auto read = [&](const int32_t* row, int32_t count) {
    auto array = Napi::Int32Array::New(info.Env(), static_cast<size_t>(count));
    ops_->copyToHost(array.Data(), row, array.ByteLength());
    return array;
  };
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("tokenIds", read(table.tokenIds + int64_t{slot} * table.maxModelLen, numTokens));
  object.Set("blockTable",
             read(table.blockTable + int64_t{slot} * table.maxBlocksPerSeq, table.maxBlocksPerSeq));
  return object;
}

// prepareInputs(requests, blockUpdates, numBlockUpdates, blockSize, batch)
Napi::Value OpsBinding::prepareInputs(const Info& info) {
  ops_->prepareInputs({}, toTable(info[0]), toData<int32_t>(info[1], "blockUpdates"),
                      toInt32(info[2], "numBlockUpdates"), toInt32(info[3], "blockSize"),
                      toBatch(info[4]));
  return info.Env().Undefined();
}

// embed(tokenIds, numTokens, table, firstToken, out)
Napi::Value OpsBinding::embed(const Info& info) {
  ops_->embed(toData<int32_t>(info[0], "tokenIds"), toInt32(info[1], "numTokens"),
              toWeight(info[2]), toInt32(info[3], "firstToken"), toData(info[4], "out"));
  return info.Env().Undefined();
}

// rmsNorm(x, residual, numTokens, weight, eps, out)
Napi::Value OpsBinding::rmsNorm(const Info& info) {
  ops_->rmsNorm(toData(info[0], "x"), toData(info[1], "residual"), toInt32(info[2], "numTokens"),
                toWeight(info[3]), static_cast<float>(toNumber(info[4], "eps")),
                toData(info[5], "out"));
  return info.Env().Undefined();
}

// linear(x, numTokens, weight, bias, out)
Napi::Value OpsBinding::linear(const Info& info) {
  const Tensor& out = toTensor(info[4], "out");
  ops_->linear(toData(info[0], "x"), toInt32(info[1], "numTokens"),
               toLinearWeight(info[2], toWeight(info[3])), out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// normLinear(x, residual, norm, eps, normed, numTokens, weight, out)
Napi::Value OpsBinding::normLinear(const Info& info) {
  const Weight norm = toWeight(info[2]);
  ops_->normLinear({toData(info[0], "x"), toData(info[1], "residual"), norm,
                    static_cast<float>(toNumber(info[3], "eps")), toData(info[4], "normed")},
                   toInt32(info[5], "numTokens"), toLinearWeight(info[6], {}),
                   toData(info[7], "out"));
  return info.Env().Undefined();
}

// linearSiluAndMul(x, numTokens, weight, gateUp, out)
Napi::Value OpsBinding::linearSiluAndMul(const Info& info) {
  const Tensor& out = toTensor(info[4], "out");
  ops_->linearSiluAndMul(toData(info[0], "x"), toInt32(info[1], "numTokens"),
                         toLinearWeight(info[2], {}), toData(info[3], "gateUp"), out.buffer.data(),
                         out.dtype());
  return info.Env().Undefined();
}

// routeTokens(logits, normalize, routing)
Napi::Value OpsBinding::routeTokens(const Info& info) {
  const Tensor& logits = toTensor(info[0], "logits");
  ops_->routeTokens(logits.buffer.data(), toBool(info[1], "normalize"), toRouting(info[2]),
                    logits.dtype());
  return info.Env().Undefined();
}

// expertLinear(x, rowsPerToken, routing, weight, out)
Napi::Value OpsBinding::expertLinear(const Info& info) {
  const Tensor& out = toTensor(info[4], "out");
  ops_->expertLinear(toData(info[0], "x"), toInt32(info[1], "rowsPerToken"), toRouting(info[2]),
                     toLinearWeight(info[3], {}), out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// sumExperts(x, routing, width, out)
Napi::Value OpsBinding::sumExperts(const Info& info) {
  const Tensor& out = toTensor(info[3], "out");
  ops_->sumExperts(toData(info[0], "x"), toRouting(info[1]), toInt32(info[2], "width"),
                   out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// ropeAndCache(qkv, batch, shape, qNorm, kNorm, eps, rope, cache)
Napi::Value OpsBinding::ropeAndCache(const Info& info) {
  ops_->ropeAndCache(toData(info[0], "qkv"), toBatch(info[1]), toAttentionShape(info[2]),
                     toWeight(info[3]), toWeight(info[4]),
                     static_cast<float>(toNumber(info[5], "eps")), toData<float>(info[6], "rope"),
                     toKvCache(info[7]));
  return info.Env().Undefined();
}

// attention(qkv, batch, shape, cache, requests, out)
Napi::Value OpsBinding::attention(const Info& info) {
  ops_->attention(toData(info[0], "qkv"), toBatch(info[1]), toAttentionShape(info[2]),
                  toKvCache(info[3]), toTable(info[4]), toData(info[5], "out"));
  return info.Env().Undefined();
}

// ropeAndAttention(qkv, batch, shape, qNorm, kNorm, eps, rope, cache, requests, out)
Napi::Value OpsBinding::ropeAndAttention(const Info& info) {
  ops_->ropeAndAttention(
      toData(info[0], "qkv"), toBatch(info[1]), toAttentionShape(info[2]), toWeight(info[3]),
      toWeight(info[4]), static_cast<float>(toNumber(info[5], "eps")),
      toData<float>(info[6], "rope"), toKvCache(info[7]), toTable(info[8]), toData(info[9], "out"));
  return info.Env().Undefined();
}

// siluAndMul(gateUp, numTokens, size, out)
Napi::Value OpsBinding::siluAndMul(const Info& info) {
  const Tensor& out = toTensor(info[3], "out");
  ops_->siluAndMul(toData(info[0], "gateUp"), toInt32(info[1], "numTokens"),
                   toInt32(info[2], "size"), out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// gatherRows(x, index, count, width, out)
Napi::Value OpsBinding::gatherRows(const Info& info) {
  const Tensor& out = toTensor(info[4], "out");
  ops_->gatherRows(toData(info[0], "x"), toData<int32_t>(info[1], "index"),
                   toInt32(info[2], "count"), toInt32(info[3], "width"), out.buffer.data(),
                   out.dtype());
  return info.Env().Undefined();
}

// joinColumns(parts, count, partWidth, width, out)
Napi::Value OpsBinding::joinColumns(const Info& info) {
  ops_->joinColumns(toData<float>(info[0], "parts"), toInt32(info[1], "count"),
                    toInt32(info[2], "partWidth"), toInt32(info[3], "width"),
                    toData<float>(info[4], "out"));
  return info.Env().Undefined();
}

}  // namespace uniproc
