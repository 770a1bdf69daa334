#include "addon/communicator_binding.h"

#include <algorithm>
#include <string>
#include <utility>

#include "addon/device_binding.h"
#include "addon/values.h"
#include "backend/buffer.h"
#include "base/error.h"

namespace uniproc {
namespace {

std::vector<std::byte> toBytes(Napi::Value value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a Uint8Array");
  }
  const auto array = value.As<Napi::Uint8Array>();
  const auto* bytes = reinterpret_cast<const std::byte*>(array.Data());
  return {bytes, bytes + array.ByteLength()};
}

CommType toCommType(Napi::Value value) {
  const std::string name = toString(value, "type");
  if (name == "int64") return CommType::kInt64;
  if (name == "float32") return CommType::kFloat32;
  if (name == "float16") return CommType::kFloat16;
  if (name == "bfloat16") return CommType::kBFloat16;
  throw Napi::TypeError::New(value.Env(), "unknown type '" + name + "'");
}

ReduceOp toReduceOp(Napi::Value value) {
  const std::string name = toString(value, "op");
  if (name == "sum") return ReduceOp::kSum;
  if (name == "min") return ReduceOp::kMin;
  if (name == "max") return ReduceOp::kMax;
  throw Napi::TypeError::New(value.Env(), "unknown op '" + name + "'");
}

CommunicatorConfig toConfig(Napi::Object object) {
  return {toInt32(object.Get("rank"), "rank"), toInt32(object.Get("worldSize"), "worldSize"),
          toInt64(object.Get("timeout"), "timeout"),
          toBool(object.Get("customAllReduce"), "customAllReduce")};
}

// An array of elements of `type`.
struct Elements {
  std::vector<std::byte> data;
  CommType type;

  Elements(Napi::Value bytes, Napi::Value typeName)
      : data(toBytes(bytes, "data")), type(toCommType(typeName)) {
    if (data.size() % sizeOf(type) != 0) {
      throw Napi::TypeError::New(bytes.Env(), "the length of data must be a multiple of " +
                                                  std::to_string(sizeOf(type)) + " bytes, got " +
                                                  std::to_string(data.size()));
    }
  }
  int64_t count() const { return static_cast<int64_t>(data.size() / sizeOf(type)); }
  Buffer toDevice(Ops& ops) const {
    Buffer buffer(ops, data.size(), kPurpose);
    ops.copyToDevice(buffer.data(), data.data(), data.size());
    return buffer;
  }

  static constexpr const char* kPurpose = "a collective's data";
};

// Synchronizes first, with the collective's timeout, because waiting for a copy has none.
std::vector<std::byte> toHost(Ops& ops, const Buffer& buffer) {
  ops.synchronize();
  std::vector<std::byte> bytes(buffer.bytes());
  ops.copyToHost(bytes.data(), buffer.data(), bytes.size());
  ops.synchronize();
  return bytes;
}

}  // namespace

void CommunicatorBinding::define(Napi::Env env, Napi::Object exports) {
  const Napi::Function communicatorClass =
      DefineClass(env, "Communicator",
                  {
                      method<&CommunicatorBinding::address>("address"),
                      method<&CommunicatorBinding::connect>("connect"),
                      method<&CommunicatorBinding::allReduce>("allReduce"),
                      method<&CommunicatorBinding::allGather>("allGather"),
                      method<&CommunicatorBinding::broadcast>("broadcast"),
                      method<&CommunicatorBinding::barrier>("barrier"),
                      method<&CommunicatorBinding::abort>("abort"),
                      method<&CommunicatorBinding::shutdown>("shutdown"),
                  });
  Environment::of(env)->communicatorClass = Napi::Persistent(communicatorClass);
  exports.Set("Communicator", communicatorClass);
}

CommunicatorBinding& CommunicatorBinding::of(const Environment& environment, Napi::Value value) {
  const Napi::Object object = toObject(value, "communicator");
  if (!object.InstanceOf(environment.communicatorClass.Value())) {
    throw Napi::TypeError::New(value.Env(), "communicator must be a NativeCommunicator");
  }
  return *Unwrap(object);
}

CommunicatorBinding::CommunicatorBinding(const Napi::CallbackInfo& info) : Binding(info) {
  withTypedErrors(info.Env(), [&] {
    DeviceBinding& device = DeviceBinding::of(*environment_, info[0]);
    auto communicator = std::make_shared<DeviceCommunicator>(toConfig(toObject(info[1], "options")),
                                                             device.device()->abandoned());
    device.device()->attach(communicator);
    deviceObject_ = Napi::Persistent(info[0].As<Napi::Object>());
    device_ = device.device();
    communicator_ = std::move(communicator);
    device_->enqueue([opened = communicator_](Ops& ops) { opened->open(ops); });
  });
}

CommunicatorBinding::~CommunicatorBinding() {
  if (communicator_ && !isShutDown()) device_->evict(communicator_, nullptr);
}

Napi::Promise CommunicatorBinding::promise(std::function<void(Ops&, Communicator&)> work) {
  return environment_->promise(*device_, [work = std::move(work), communicator = communicator_](
                                             Ops& ops) { work(ops, communicator->get()); });
}

Napi::Promise CommunicatorBinding::promiseOfBytes(std::function<Bytes(Ops&, Communicator&)> work) {
  auto result = std::make_shared<Bytes>();
  return environment_->promise(
      *device_,
      [work = std::move(work), communicator = communicator_, result](Ops& ops) {
        *result = work(ops, communicator->get());
      },
      [result](Napi::Env env) {
        auto array = Napi::Uint8Array::New(env, result->size());
        std::copy(result->begin(), result->end(), reinterpret_cast<std::byte*>(array.Data()));
        return array;
      });
}

Napi::Value CommunicatorBinding::address(const Napi::CallbackInfo&) {
  return promiseOfBytes([](Ops&, Communicator& communicator) { return communicator.address(); });
}

Napi::Value CommunicatorBinding::connect(const Napi::CallbackInfo& info) {
  const Napi::Array array = toArray(info[0], "addresses");
  std::vector<Bytes> addresses;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    addresses.push_back(toBytes(array.Get(i), "addresses"));
  }
  return promise([addresses = std::move(addresses)](Ops&, Communicator& communicator) {
    communicator.connect(addresses);
  });
}

Napi::Value CommunicatorBinding::allReduce(const Napi::CallbackInfo& info) {
  const ReduceOp op = toReduceOp(info[2]);
  return promiseOfBytes(
      [in = Elements(info[0], info[1]), op](Ops& ops, Communicator& communicator) {
        const Buffer data = in.toDevice(ops);
        communicator.allReduce(data.data(), in.count(), in.type, op);
        return toHost(ops, data);
      });
}

Napi::Value CommunicatorBinding::allGather(const Napi::CallbackInfo& info) {
  return promiseOfBytes([in = Elements(info[0], info[1])](Ops& ops, Communicator& communicator) {
    const Buffer data = in.toDevice(ops);
    const Buffer all(ops, data.bytes() * communicator.worldSize(), Elements::kPurpose);
    communicator.allGather(data.data(), all.data(), in.count(), in.type);
    return toHost(ops, all);
  });
}

Napi::Value CommunicatorBinding::broadcast(const Napi::CallbackInfo& info) {
  const int32_t root = toInt32(info[2], "root");
  if (root < 0 || root >= communicator_->worldSize()) {
    throw Napi::RangeError::New(info.Env(),
                                "root must be a rank of the group, got " + std::to_string(root));
  }
  return promiseOfBytes(
      [in = Elements(info[0], info[1]), root](Ops& ops, Communicator& communicator) {
        const Buffer data = in.toDevice(ops);
        communicator.broadcast(data.data(), in.count(), in.type, root);
        return toHost(ops, data);
      });
}

Napi::Value CommunicatorBinding::barrier(const Napi::CallbackInfo&) {
  return promise([](Ops&, Communicator& communicator) { communicator.barrier(); });
}

Napi::Value CommunicatorBinding::abort(const Napi::CallbackInfo& info) {
  communicator_->abort(toString(info[0], "reason"));
  return info.Env().Undefined();
}

Napi::Value CommunicatorBinding::shutdown(const Napi::CallbackInfo&) {
  return shutdownOnce([this] {
    return environment_->promise([this](Environment::Settle settle) {
      // A device that was shut down has already released it.
      device_->evict(communicator_, [settle](std::exception_ptr) { settle(nullptr); });
    });
  });
}

}  // namespace uniproc
