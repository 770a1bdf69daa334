#include "addon_testing/ops_binding.h"

#include <string>
#include <utility>

#include "addon/values.h"
#include "addon_testing/handles.h"
#include "addon_testing/ops_values.h"
#include "base/error.h"
#include "ops/cpu/cpu_ops.h"
#include "runtime/cuda_backend.h"

namespace uniproc {
namespace {

void requireSize(const Napi::CallbackInfo& info, const Tensor& tensor, size_t bytes) {
  if (bytes != static_cast<size_t>(bytesOf(tensor.type, tensor.count))) {
    throw Napi::TypeError::New(info.Env(),
                               "the array and the tensor must have the same number of bytes");
  }
}

}  // namespace

Napi::Function OpsBinding::define(Napi::Env env) {
  return DefineClass(env, "Ops",
                     {
                         method<&OpsBinding::properties>("properties"),
                         method<&OpsBinding::memory>("memory"),
                         method<&OpsBinding::resetPeakMemory>("resetPeakMemory"),
                         method<&OpsBinding::synchronize>("synchronize"),
                         method<&OpsBinding::allocate>("allocate"),
                         method<&OpsBinding::release>("release"),
                         method<&OpsBinding::copyToDevice>("copyToDevice"),
                         method<&OpsBinding::copyToHost>("copyToHost"),
                         method<&OpsBinding::makeRequests>("makeRequests"),
                         method<&OpsBinding::addRequest>("addRequest"),
                         method<&OpsBinding::readRequest>("readRequest"),
                         method<&OpsBinding::upload>("upload"),
                         method<&OpsBinding::download>("download"),
                         method<&OpsBinding::fillRandom>("fillRandom"),
                         method<&OpsBinding::chooseProductAlgorithms>("chooseProductAlgorithms"),
                         method<&OpsBinding::prepareInputs>("prepareInputs"),
                         method<&OpsBinding::embed>("embed"),
                         method<&OpsBinding::rmsNorm>("rmsNorm"),
                         method<&OpsBinding::arrange>("arrange"),
                         method<&OpsBinding::linear>("linear"),
                         method<&OpsBinding::normLinear>("normLinear"),
                         method<&OpsBinding::linearSiluAndMul>("linearSiluAndMul"),
                         method<&OpsBinding::routeTokens>("routeTokens"),
                         method<&OpsBinding::routeTokensBySigmoid>("routeTokensBySigmoid"),
                         method<&OpsBinding::expertLinear>("expertLinear"),
                         method<&OpsBinding::applyWeights>("applyWeights"),
                         method<&OpsBinding::scaleBy>("scaleBy"),
                         method<&OpsBinding::normValues>("normValues"),
                         method<&OpsBinding::sumExperts>("sumExperts"),
                         method<&OpsBinding::multiplyExperts>("multiplyExperts"),
                         method<&OpsBinding::ropeAndCache>("ropeAndCache"),
                         method<&OpsBinding::attention>("attention"),
                         method<&OpsBinding::ropeAndAttention>("ropeAndAttention"),
                         method<&OpsBinding::siluAndMul>("siluAndMul"),
                         method<&OpsBinding::geluAndMul>("geluAndMul"),
                         method<&OpsBinding::clampedSwiglu>("clampedSwiglu"),
                         method<&OpsBinding::activateAndMulRows>("activateAndMulRows"),
                         method<&OpsBinding::scaleQueries>("scaleQueries"),
                         method<&OpsBinding::scale>("scale"),
                         method<&OpsBinding::softcap>("softcap"),
                         method<&OpsBinding::add>("add"),
                         method<&OpsBinding::addGated>("addGated"),
                         method<&OpsBinding::sumSquares>("sumSquares"),
                         method<&OpsBinding::normProjections>("normProjections"),
                         method<&OpsBinding::gatherRows>("gatherRows"),
                         method<&OpsBinding::joinColumns>("joinColumns"),
                         method<&OpsBinding::sample>("sample"),
                         method<&OpsBinding::gatherLogprobs>("gatherLogprobs"),
                         method<&OpsBinding::makeCommunicator>("makeCommunicator"),
                         method<&OpsBinding::address>("address"),
                         method<&OpsBinding::connect>("connect"),
                         method<&OpsBinding::hasPeerMemory>("hasPeerMemory"),
                         method<&OpsBinding::allReduce>("allReduce"),
                         method<&OpsBinding::sumRmsNorm>("sumRmsNorm"),
                         method<&OpsBinding::allGather>("allGather"),
                         method<&OpsBinding::barrier>("barrier"),
                         method<&OpsBinding::dropCommunicator>("dropCommunicator"),
                         method<&OpsBinding::makeGraphs>("makeGraphs"),
                         method<&OpsBinding::launchGraph>("launchGraph"),
                         method<&OpsBinding::dropGraphs>("dropGraphs"),
                     });
}

OpsBinding::OpsBinding(const Napi::CallbackInfo& info) : Binding(info) {
  withTypedErrors(info.Env(), [&] {
    const Napi::Object options = toObject(info[0], "options");
    const std::string kind = toString(options.Get("kind"), "kind");
    if (kind == "cuda") {
      ops_ = openCudaBackend(int32Of(options, "index"));
      return;
    }
    if (kind != "cpu") throw Error("NOT_SUPPORTED", "unknown device kind '" + kind + "'");
    const Napi::Value isa = options.Get("isa");
    ops_ = makeCpuOps(int32Of(options, "numThreads"),
                      isNothing(isa) ? std::string() : toString(isa, "isa"));
  });
}

// { name, capability, numThreads }
Napi::Value OpsBinding::properties(const Info& info) {
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("name", ops_->name());
  object.Set("capability", ops_->capability());
  object.Set("numThreads", ops_->numThreads());
  return object;
}

Napi::Value OpsBinding::memory(const Info& info) {
  const DeviceMemory memory = ops_->memory();
  Napi::Object object =
      fromFigures(info.Env(), static_cast<double>(memory.total), static_cast<double>(memory.free));
  object.Set("allocated", static_cast<double>(memory.allocated));
  object.Set("peakAllocated", static_cast<double>(memory.peakAllocated));
  return object;
}

Napi::Value OpsBinding::resetPeakMemory(const Info& info) {
  ops_->resetPeakMemory();
  return info.Env().Undefined();
}

Napi::Value OpsBinding::synchronize(const Info& info) {
  ops_->synchronize();
  return info.Env().Undefined();
}

// allocate(count, dtype, what): a handle of zeros.
Napi::Value OpsBinding::allocate(const Info& info) {
  const int64_t count = toInt64(info[0], "count");
  const StorageType type = toStorageType(info[1]);
  const std::string what = toString(info[2], "what");
  Buffer buffer(*ops_, static_cast<size_t>(bytesOf(type, count)), what.c_str());
  auto tensor = std::make_unique<Tensor>(Tensor{ops_, type, count, std::move(buffer)});
  return toHandle(info.Env(), std::move(tensor), kTensorTag);
}

// release(tensor): frees its memory before garbage collection does.
Napi::Value OpsBinding::release(const Info& info) {
  Tensor& tensor = toTensor(info[0], "tensor");
  tensor.buffer = {};
  tensor.count = 0;
  return info.Env().Undefined();
}

// copyToDevice(tensor, array): copies the array's bytes, as many as the tensor has.
Napi::Value OpsBinding::copyToDevice(const Info& info) {
  const Tensor& tensor = toTensor(info[0], "tensor");
  const auto [bytes, size] = toBytes(info[1], "array");
  requireSize(info, tensor, size);
  ops_->copyToDevice(tensor.buffer.data(), bytes, size);
  return info.Env().Undefined();
}

Napi::Value OpsBinding::copyToHost(const Info& info) {
  const auto [bytes, size] = toBytes(info[0], "array");
  const Tensor& tensor = toTensor(info[1], "tensor");
  requireSize(info, tensor, size);
  ops_->copyToHost(bytes, tensor.buffer.data(), size);
  return info.Env().Undefined();
}

// upload(out, host, hostType, cols?, rowStride?): host is a typed array of any alignment. With
// `cols` and `rowStride`, out has rows of `cols` elements, `rowStride` elements apart in host.
Napi::Value OpsBinding::upload(const Info& info) {
  const Tensor& out = toTensor(info[0], "out");
  const auto [bytes, size] = toBytes(info[1], "host");
  const StorageType hostType = toStorageType(info[2]);
  const bool inRows = !isNothing(info[3]);
  const int64_t cols = inRows ? toInt64(info[3], "cols") : out.count;
  const int64_t rowStride = inRows ? toInt64(info[4], "rowStride") : cols;
  const int64_t rows = cols > 0 ? out.count / cols : 0;
  const int64_t span = rows > 0 ? (rows - 1) * rowStride + cols : 0;
  if (rows * cols != out.count || size != static_cast<size_t>(bytesOf(hostType, span))) {
    throw Napi::TypeError::New(info.Env(), "host must have exactly the rows of out");
  }
  const BytesInMemory host(reinterpret_cast<const std::byte*>(bytes));
  ops_->upload(out.buffer.data(), out.type, {host, 0, hostType, rows, cols, rowStride});
  return info.Env().Undefined();
}

// download(array, tensor): copies the tensor's bytes, as many as the array has.
Napi::Value OpsBinding::download(const Info& info) {
  const auto [bytes, size] = toBytes(info[0], "array");
  const Tensor& tensor = toTensor(info[1], "tensor");
  requireSize(info, tensor, size);
  ops_->download(bytes, tensor.buffer.data(), static_cast<int64_t>(size));
  return info.Env().Undefined();
}

// chooseProductAlgorithms(known)
Napi::Value OpsBinding::chooseProductAlgorithms(const Info& info) {
  return Napi::String::New(info.Env(), ops_->chooseProductAlgorithms(toString(info[0], "known")));
}

// fillRandom(out, mean, std, seed)
Napi::Value OpsBinding::fillRandom(const Info& info) {
  const Tensor& out = toTensor(info[0], "out");
  bool lossless = false;
  ops_->fillRandom(out.buffer.data(), out.type, out.count,
                   static_cast<float>(toNumber(info[1], "mean")),
                   static_cast<float>(toNumber(info[2], "std")),
                   info[3].As<Napi::BigInt>().Uint64Value(&lossless));
  return info.Env().Undefined();
}

}  // namespace uniproc
