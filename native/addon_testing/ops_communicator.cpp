#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "addon/values.h"
#include "addon_testing/handles.h"
#include "addon_testing/ops_binding.h"
#include "addon_testing/ops_values.h"
#include "base/error.h"

namespace uniproc {
namespace {

Communicator& toCommunicator(Napi::Value value) {
  Group& group = fromHandle<Group>(value, "communicator", kGroupTag);
  if (!group.communicator) throw Error("SHUT_DOWN", "the communicator was released");
  return *group.communicator;
}

}  // namespace

// makeCommunicator({ rank, worldSize, timeout, customAllReduce }). The calls of communicators and
// graphs block the JavaScript thread, also for other ranks.
Napi::Value OpsBinding::makeCommunicator(const Info& info) {
  const Napi::Object object = toObject(info[0], "options");
  const CommunicatorConfig config{int32Of(object, "rank"), int32Of(object, "worldSize"),
                                  toInt64(object.Get("timeout"), "timeout"),
                                  toBool(object.Get("customAllReduce"), "customAllReduce")};
  auto group = std::make_unique<Group>(Group{ops_, ops_->makeCommunicator(config)});
  return toHandle(info.Env(), std::move(group), kGroupTag);
}

// address(communicator): a Uint8Array.
Napi::Value OpsBinding::address(const Info& info) {
  const std::vector<std::byte> address = toCommunicator(info[0]).address();
  auto array = Napi::Uint8Array::New(info.Env(), address.size());
  std::memcpy(array.Data(), address.data(), address.size());
  return array;
}

// connect(communicator, addresses): addresses are by rank.
Napi::Value OpsBinding::connect(const Info& info) {
  const Napi::Array array = toArray(info[1], "addresses");
  std::vector<std::vector<std::byte>> addresses;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const auto [bytes, size] = toBytes(array.Get(i), "addresses");
    const auto* data = reinterpret_cast<const std::byte*>(bytes);
    addresses.emplace_back(data, data + size);
  }
  toCommunicator(info[0]).connect(addresses);
  return info.Env().Undefined();
}

Napi::Value OpsBinding::hasPeerMemory(const Info& info) {
  return Napi::Boolean::New(info.Env(), toCommunicator(info[0]).hasPeerMemory());
}

// allReduce(communicator, data): sums in place.
Napi::Value OpsBinding::allReduce(const Info& info) {
  const Tensor& data = toTensor(info[1], "data");
  toCommunicator(info[0]).allReduce(data.buffer.data(), data.count, toCommType(data.dtype()),
                                    ReduceOp::kSum);
  return info.Env().Undefined();
}

// sumRmsNorm(communicator, x, residual, numTokens, weight, eps, out)
Napi::Value OpsBinding::sumRmsNorm(const Info& info) {
  ops_->sumRmsNorm(toCommunicator(info[0]), toData(info[1], "x"), toData(info[2], "residual"),
                   toInt32(info[3], "numTokens"), toWeight(info[4]),
                   static_cast<float>(toNumber(info[5], "eps")), toData(info[6], "out"));
  return info.Env().Undefined();
}

// allGather(communicator, in, out)
Napi::Value OpsBinding::allGather(const Info& info) {
  const Tensor& in = toTensor(info[1], "in");
  toCommunicator(info[0]).allGather(in.buffer.data(), toData(info[2], "out"), in.count,
                                    toCommType(in.dtype()));
  return info.Env().Undefined();
}

Napi::Value OpsBinding::barrier(const Info& info) {
  toCommunicator(info[0]).barrier();
  return info.Env().Undefined();
}

Napi::Value OpsBinding::dropCommunicator(const Info& info) {
  fromHandle<Group>(info[0], "communicator", kGroupTag).communicator.reset();
  return info.Env().Undefined();
}

Napi::Value OpsBinding::makeGraphs(const Info& info) {
  auto recordings = std::make_unique<Recordings>(Recordings{ops_, ops_->makeGraphs()});
  return toHandle(info.Env(), std::move(recordings), kRecordingsTag);
}

// launchGraph(graphs, key, record): Graphs::launch of the operations in function `record`.
Napi::Value OpsBinding::launchGraph(const Info& info) {
  const auto& recordings = fromHandle<Recordings>(info[0], "graphs", kRecordingsTag);
  const Napi::Function record = toFunction(info[2], "record");
  const auto operations = [&record] { record.Call({}); };
  if (recordings.graphs) {
    recordings.graphs->launch(toInt32(info[1], "key"), operations);
  } else {
    operations();
  }
  return info.Env().Undefined();
}

Napi::Value OpsBinding::dropGraphs(const Info& info) {
  fromHandle<Recordings>(info[0], "graphs", kRecordingsTag).graphs.reset();
  return info.Env().Undefined();
}

}  // namespace uniproc
