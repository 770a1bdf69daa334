#pragma once

#include <napi.h>

#include <memory>

#include "addon/binding.h"
#include "addon_testing/handles.h"
#include "ops/ops.h"

namespace uniproc {

// Calls single operations of ops/ops.h, with handles in place of device memory: NativeOps of
// test/native/ops/binding.ts. The definitions document the arguments.
class OpsBinding : public Binding<OpsBinding> {
 public:
  static Napi::Function define(Napi::Env env);

  // new Ops({ kind: 'cpu', numThreads, isa }) or new Ops({ kind: 'cuda', index })
  explicit OpsBinding(const Napi::CallbackInfo& info);

 private:
  using Info = Napi::CallbackInfo;

  // ops_binding.cpp: the device and its memory.
  Napi::Value properties(const Info& info);
  Napi::Value memory(const Info& info);
  Napi::Value resetPeakMemory(const Info& info);
  Napi::Value synchronize(const Info& info);
  Napi::Value allocate(const Info& info);
  Napi::Value release(const Info& info);
  Napi::Value copyToDevice(const Info& info);
  Napi::Value copyToHost(const Info& info);
  Napi::Value upload(const Info& info);
  Napi::Value download(const Info& info);
  Napi::Value fillRandom(const Info& info);
  Napi::Value chooseProductAlgorithms(const Info& info);

  // ops_forward.cpp: requests, and the operations of a forward pass.
  Napi::Value makeRequests(const Info& info);
  Napi::Value addRequest(const Info& info);
  Napi::Value readRequest(const Info& info);
  Napi::Value prepareInputs(const Info& info);
  Napi::Value embed(const Info& info);
  Napi::Value rmsNorm(const Info& info);
  Napi::Value arrange(const Info& info);
  Napi::Value linear(const Info& info);
  Napi::Value normLinear(const Info& info);
  Napi::Value linearSiluAndMul(const Info& info);
  Napi::Value routeTokens(const Info& info);
  Napi::Value routeTokensBySigmoid(const Info& info);
  Napi::Value expertLinear(const Info& info);
  Napi::Value applyWeights(const Info& info);
  Napi::Value scaleBy(const Info& info);
  Napi::Value normValues(const Info& info);
  Napi::Value sumExperts(const Info& info);
  Napi::Value multiplyExperts(const Info& info);
  Napi::Value ropeAndCache(const Info& info);
  Napi::Value attention(const Info& info);
  Napi::Value ropeAndAttention(const Info& info);
  void activateAndMul(const Info& info, Activation activation, const Tensor& out);
  Napi::Value siluAndMul(const Info& info);
  Napi::Value geluAndMul(const Info& info);
  Napi::Value clampedSwiglu(const Info& info);
  Napi::Value activateAndMulRows(const Info& info);
  Napi::Value scaleQueries(const Info& info);
  Napi::Value scale(const Info& info);
  Napi::Value softcap(const Info& info);
  Napi::Value add(const Info& info);
  Napi::Value addGated(const Info& info);
  Napi::Value sumSquares(const Info& info);
  Napi::Value normProjections(const Info& info);
  Napi::Value gatherRows(const Info& info);
  Napi::Value joinColumns(const Info& info);

  // ops_sampling.cpp.
  Napi::Value sample(const Info& info);
  Napi::Value gatherLogprobs(const Info& info);

  // ops_communicator.cpp: collectives and recorded operations.
  Napi::Value makeCommunicator(const Info& info);
  Napi::Value address(const Info& info);
  Napi::Value connect(const Info& info);
  Napi::Value hasPeerMemory(const Info& info);
  Napi::Value allReduce(const Info& info);
  Napi::Value sumRmsNorm(const Info& info);
  Napi::Value allGather(const Info& info);
  Napi::Value barrier(const Info& info);
  Napi::Value dropCommunicator(const Info& info);
  Napi::Value makeGraphs(const Info& info);
  Napi::Value launchGraph(const Info& info);
  Napi::Value dropGraphs(const Info& info);

  std::shared_ptr<Ops> ops_;
};

}  // namespace uniproc
