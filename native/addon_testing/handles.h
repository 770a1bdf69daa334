// What the operations' calls hold on a device, as JavaScript has it.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "ops/ops.h"
#include "runner/request_slots.h"
#include "runtime/buffer.h"

namespace uniproc {

// Elements of one type in device memory; to JavaScript an opaque handle. int32 is stored as
// float32.
struct Tensor {
  std::shared_ptr<Ops> ops;
  StorageType type;
  int64_t count;
  Buffer buffer;

  DType dtype() const { return dtypeOf(type); }  // of float elements
};

// A request table with its requests; to JavaScript an opaque handle.
struct Requests {
  std::shared_ptr<Ops> ops;
  RequestSlots slots;
  int64_t listBytes;  // of each
};

// A group's communicator; to JavaScript an opaque handle.
struct Group {
  std::shared_ptr<Ops> ops;
  std::unique_ptr<Communicator> communicator;
};

// Recorded operations; to JavaScript an opaque handle. There are none where a backend records none.
struct Recordings {
  std::shared_ptr<Ops> ops;
  std::unique_ptr<Graphs> graphs;
};

inline constexpr napi_type_tag kTensorTag = {0x756e6970726f6301, 1};
inline constexpr napi_type_tag kRequestsTag = {0x756e6970726f6301, 2};
inline constexpr napi_type_tag kGroupTag = {0x756e6970726f6301, 3};
inline constexpr napi_type_tag kRecordingsTag = {0x756e6970726f6301, 4};

template <typename T>
Napi::Value toHandle(Napi::Env env, std::unique_ptr<T> object, const napi_type_tag& tag) {
  auto handle = Napi::External<T>::New(
      env, object.get(), [](Napi::Env, T* done) { const std::unique_ptr<T> owner(done); });
  object.release();  // NOLINT(bugprone-unused-return-value): the handle owns it
  handle.TypeTag(&tag);
  return handle;
}

template <typename T>
T& fromHandle(Napi::Value value, const char* name, const napi_type_tag& tag) {
  if (!value.IsExternal() || !value.As<Napi::External<T>>().CheckTypeTag(&tag)) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a handle of ops");
  }
  return *value.As<Napi::External<T>>().Data();
}

inline bool isNothing(Napi::Value value) { return value.IsNull() || value.IsUndefined(); }

inline Tensor& toTensor(Napi::Value value, const char* name) {
  return fromHandle<Tensor>(value, name, kTensorTag);
}

// The tensor's memory, or null for null.
template <typename T = void>
T* toData(Napi::Value value, const char* name) {
  return isNothing(value) ? nullptr : toTensor(value, name).buffer.as<T>();
}

}  // namespace uniproc
