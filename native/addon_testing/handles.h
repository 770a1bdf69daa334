// JavaScript handles of objects on a device.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <string>

#include "backend/buffer.h"
#include "backend/communicator.h"
#include "ops/ops.h"
#include "runner/request_slots.h"

namespace uniproc {

// Elements of one type in device memory; an opaque handle in JavaScript. int32 has the storage type
// of float32.
struct Tensor {
  std::shared_ptr<Ops> ops;
  StorageType type;
  int64_t count;
  Buffer buffer;

  DType dtype() const { return dtypeOf(type); }  // requires a float type
};

// A request table with its requests; an opaque handle in JavaScript.
struct Requests {
  std::shared_ptr<Ops> ops;
  RequestSlots slots;
  int64_t listBytes;  // per request
};

// A rank's communicator; an opaque handle in JavaScript.
struct Group {
  std::shared_ptr<Ops> ops;
  std::unique_ptr<Communicator> communicator;
};

// Recorded operations; an opaque handle in JavaScript. `graphs` is null if the backend does not
// record.
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
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a handle made by Ops");
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
