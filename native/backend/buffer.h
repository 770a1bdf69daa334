// Owns memory from Backend.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "backend/backend.h"

namespace uniproc {

template <auto allocate, auto release>
class BasicBuffer {
 public:
  BasicBuffer() = default;
  // Throws Error OUT_OF_MEMORY, which names `what`.
  BasicBuffer(Backend& ops, size_t bytes, const char* what)
      : ops_(&ops), data_((ops.*allocate)(bytes, what)), bytes_(bytes) {}
  ~BasicBuffer() {
    if (data_) (ops_->*release)(data_, bytes_);
  }
  BasicBuffer(BasicBuffer&& other) noexcept { swap(other); }
  BasicBuffer& operator=(BasicBuffer&& other) noexcept {
    BasicBuffer(std::move(other)).swap(*this);
    return *this;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(BasicBuffer& other) noexcept {
    std::swap(ops_, other.ops_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Backend* ops_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Zeroed device memory.
using Buffer = BasicBuffer<&Backend::allocate, &Backend::release>;
// The same, written in small parts over time.
using SparseBuffer = BasicBuffer<&Backend::allocateSparse, &Backend::release>;
// Host memory that the device reads and writes directly.
using HostBuffer = BasicBuffer<&Backend::allocateHost, &Backend::releaseHost>;

struct Unpin {
  Backend* ops = nullptr;
  void operator()(void* memory) const noexcept { ops->unpin(memory); }
};
// Pins host memory for the object's lifetime.
using PinnedMemory = std::unique_ptr<void, Unpin>;

inline PinnedMemory pin(Backend& ops, void* memory, size_t bytes) {
  ops.pin(memory, bytes);
  return PinnedMemory(memory, Unpin{&ops});
}

}  // namespace uniproc
