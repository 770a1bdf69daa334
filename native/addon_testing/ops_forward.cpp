#include <algorithm>
#include <memory>
#include <numeric>
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

// makeRequests({ vocabSize, maxNumSeqs, maxModelLen, blockSize, maxLogprobs, numKvCacheGroups })
Napi::Value OpsBinding::makeRequests(const Info& info) {
  const Napi::Object object = toObject(info[0], "limits");
  ModelSpec spec;
  spec.vocabSize = int32Of(object, "vocabSize");
  ModelLimits limits;
  limits.maxNumSeqs = int32Of(object, "maxNumSeqs");
  limits.maxModelLen = int32Of(object, "maxModelLen");
  limits.blockSize = int32Of(object, "blockSize");
  limits.maxLogprobs = int32Of(object, "maxLogprobs");
  if (const Napi::Value groups = object.Get("numKvCacheGroups"); !groups.IsUndefined()) {
    limits.kvCacheGroups.resize(toInt32(groups, "numKvCacheGroups"));
    std::iota(limits.kvCacheGroups.begin(), limits.kvCacheGroups.end(), 0);
  }
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

// readRequest(requests, slot): the device's { tokenIds, blockTable }, that of the first group.
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
              toLinearWeight(info[2], {}), toInt32(info[3], "firstToken"), toData(info[4], "out"));
  return info.Env().Undefined();
}

// rmsNorm(x, residual, numTokens, weight, eps, out)
Napi::Value OpsBinding::rmsNorm(const Info& info) {
  ops_->rmsNorm(toData(info[0], "x"), toData(info[1], "residual"), toInt32(info[2], "numTokens"),
                toWeight(info[3]), static_cast<float>(toNumber(info[4], "eps")),
                toData(info[5], "out"));
  return info.Env().Undefined();
}

// arrange(weight, sliceRows), returns weight.isArranged
Napi::Value OpsBinding::arrange(const Info& info) {
  LinearWeight weight = toLinearWeight(info[0], {});
  ops_->arrange(weight, toInt32(info[1], "sliceRows"));
  return Napi::Boolean::New(info.Env(), weight.isArranged);
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

// routeTokens(logits, normalize, routing, expertScales)
Napi::Value OpsBinding::routeTokens(const Info& info) {
  const Tensor& logits = toTensor(info[0], "logits");
  ops_->routeTokens(logits.buffer.data(),
                    {toBool(info[1], "normalize"), toData<float>(info[3], "expertScales")},
                    toRouting(info[2]), logits.dtype());
  return info.Env().Undefined();
}

// routeTokensBySigmoid(logits, { bias, numGroups, numChosenGroups, normalize, scale }, routing)
Napi::Value OpsBinding::routeTokensBySigmoid(const Info& info) {
  const Napi::Object rule = toObject(info[1], "rule");
  ops_->routeTokensBySigmoid(
      toData<float>(info[0], "logits"),
      {toData<float>(rule.Get("bias"), "bias"), int32Of(rule, "numGroups"),
       int32Of(rule, "numChosenGroups"), toBool(rule.Get("normalize"), "normalize"),
       static_cast<float>(toNumber(rule.Get("scale"), "scale"))},
      toRouting(info[2]));
  return info.Env().Undefined();
}

// expertLinear(x, rowsPerToken, routing, weight, out, bias)
Napi::Value OpsBinding::expertLinear(const Info& info) {
  const Tensor& out = toTensor(info[4], "out");
  ops_->expertLinear(toData(info[0], "x"), toInt32(info[1], "rowsPerToken"), toRouting(info[2]),
                     toLinearWeight(info[3], toWeight(info[5])), out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// applyWeights(x, routing, width)
Napi::Value OpsBinding::applyWeights(const Info& info) {
  const Tensor& x = toTensor(info[0], "x");
  ops_->applyWeights(x.buffer.data(), toRouting(info[1]), toInt32(info[2], "width"), x.dtype());
  return info.Env().Undefined();
}

// sumExperts(x, routing, width, out)
Napi::Value OpsBinding::sumExperts(const Info& info) {
  const Tensor& out = toTensor(info[3], "out");
  ops_->sumExperts(toData(info[0], "x"), toRouting(info[1]), toInt32(info[2], "width"),
                   out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// multiplyExperts(x, routing, gateUp, down, activation, wide, product, out), with the number of an
// Activation
Napi::Value OpsBinding::multiplyExperts(const Info& info) {
  const Tensor& out = toTensor(info[7], "out");
  const LinearWeight gateUp = toLinearWeight(info[2], {});
  const LinearWeight down = toLinearWeight(info[3], {});
  const auto activation = static_cast<Activation>(toInt32(info[4], "activation"));
  ops_->multiplyExperts(toData(info[0], "x"), toRouting(info[1]), {gateUp, down, activation},
                        toData(info[5], "wide"), toData(info[6], "product"), out.buffer.data(),
                        out.dtype());
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

// out [numTokens, size] of (gateUp, numTokens, size).
void OpsBinding::activateAndMul(const Info& info, Activation activation, const Tensor& out) {
  ops_->activateAndMul(toData(info[0], "gateUp"), toInt32(info[1], "numTokens"),
                       toInt32(info[2], "size"), activation, out.buffer.data(), out.dtype());
}

// siluAndMul(gateUp, numTokens, size, out)
Napi::Value OpsBinding::siluAndMul(const Info& info) {
  activateAndMul(info, Activation::kSilu, toTensor(info[3], "out"));
  return info.Env().Undefined();
}

// geluAndMul(gateUp, numTokens, size, isTanh, out)
Napi::Value OpsBinding::geluAndMul(const Info& info) {
  const bool isTanh = toBool(info[3], "isTanh");
  activateAndMul(info, isTanh ? Activation::kGeluTanh : Activation::kGelu,
                 toTensor(info[4], "out"));
  return info.Env().Undefined();
}

// clampedSwiglu(gateUp, numTokens, size, out)
Napi::Value OpsBinding::clampedSwiglu(const Info& info) {
  activateAndMul(info, Activation::kClampedSwiglu, toTensor(info[3], "out"));
  return info.Env().Undefined();
}

// activateAndMulRows(gate, gateStride, up, upStart, upStride, numTokens, size, activation, out),
// with up from its element upStart on and the number of an Activation
Napi::Value OpsBinding::activateAndMulRows(const Info& info) {
  const Tensor& out = toTensor(info[8], "out");
  const int64_t start = toInt64(info[3], "upStart") * static_cast<int64_t>(sizeOf(out.dtype()));
  const ForwardOps::GateAndUp in = {toData(info[0], "gate"), toInt64(info[1], "gateStride"),
                                    toData<std::byte>(info[2], "up") + start,
                                    toInt64(info[4], "upStride")};
  ops_->activateAndMulRows(in, toInt32(info[5], "numTokens"), toInt32(info[6], "size"),
                           static_cast<Activation>(toInt32(info[7], "activation")),
                           out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// scaleQueries(qkv, batch, shape, beta, period, shift)
Napi::Value OpsBinding::scaleQueries(const Info& info) {
  const Tensor& qkv = toTensor(info[0], "qkv");
  ops_->scaleQueries(qkv.buffer.data(), toBatch(info[1]), toAttentionShape(info[2]),
                     {static_cast<float>(toNumber(info[3], "beta")),
                      static_cast<float>(toNumber(info[4], "period")),
                      static_cast<float>(toNumber(info[5], "shift"))},
                     qkv.dtype());
  return info.Env().Undefined();
}

// scale(x, count, factor)
Napi::Value OpsBinding::scale(const Info& info) {
  const Tensor& x = toTensor(info[0], "x");
  ops_->scale(x.buffer.data(), toInt64(info[1], "count"),
              static_cast<float>(toNumber(info[2], "factor")), x.dtype());
  return info.Env().Undefined();
}

// scaleBy(x, count, factor)
Napi::Value OpsBinding::scaleBy(const Info& info) {
  const Tensor& x = toTensor(info[0], "x");
  ops_->scaleBy(x.buffer.data(), toInt64(info[1], "count"), toWeight(info[2]), x.dtype());
  return info.Env().Undefined();
}

// normValues(qkv, numTokens, shape, eps)
Napi::Value OpsBinding::normValues(const Info& info) {
  const Tensor& qkv = toTensor(info[0], "qkv");
  ops_->normValues(qkv.buffer.data(), toInt32(info[1], "numTokens"), toAttentionShape(info[2]),
                   static_cast<float>(toNumber(info[3], "eps")), qkv.dtype());
  return info.Env().Undefined();
}

// softcap(x, count, cap)
Napi::Value OpsBinding::softcap(const Info& info) {
  ops_->softcap(toData<float>(info[0], "x"), toInt64(info[1], "count"),
                static_cast<float>(toNumber(info[2], "cap")));
  return info.Env().Undefined();
}

// add(residual, x, count)
Napi::Value OpsBinding::add(const Info& info) {
  const Tensor& residual = toTensor(info[0], "residual");
  ops_->add(residual.buffer.data(), toData(info[1], "x"), toInt64(info[2], "count"),
            residual.dtype());
  return info.Env().Undefined();
}

// addGated(x, gate, numTokens, width, out)
Napi::Value OpsBinding::addGated(const Info& info) {
  const Tensor& out = toTensor(info[4], "out");
  ops_->addGated(toData(info[0], "x"), toData(info[1], "gate"), toInt32(info[2], "numTokens"),
                 toInt32(info[3], "width"), out.buffer.data(), out.dtype());
  return info.Env().Undefined();
}

// sumSquares(qkv, numTokens, shape, sums)
Napi::Value OpsBinding::sumSquares(const Info& info) {
  const Tensor& qkv = toTensor(info[0], "qkv");
  ops_->sumSquares(qkv.buffer.data(), toInt32(info[1], "numTokens"), toAttentionShape(info[2]),
                   toData<float>(info[3], "sums"), qkv.dtype());
  return info.Env().Undefined();
}

// normProjections(qkv, numTokens, shape, sums, qNorm, kNorm, qWidth, kWidth, eps)
Napi::Value OpsBinding::normProjections(const Info& info) {
  const Tensor& qkv = toTensor(info[0], "qkv");
  const Weight q = toWeight(info[4]);
  const Weight k = toWeight(info[5]);
  ops_->normProjections(qkv.buffer.data(), toInt32(info[1], "numTokens"), toAttentionShape(info[2]),
                        {toData<float>(info[3], "sums"), q, k, toInt32(info[6], "qWidth"),
                         toInt32(info[7], "kWidth"), static_cast<float>(toNumber(info[8], "eps"))},
                        qkv.dtype());
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
