// What a backend is, apart from arithmetic: a device's memory, its steps, operations recorded once.
//
// Every pointer is device memory unless it says host. All calls are made by the device's own
// thread, in order; a backend may run them asynchronously on one stream, but keeps that order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "backend/communicator.h"
#include "base/types.h"

namespace uniproc {

constexpr CommType toCommType(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CommType::kFloat16;
    case DType::kBFloat16:
      return CommType::kBFloat16;
    default:
      return CommType::kFloat32;
  }
}

// Bytes of the host's, in memory or in a file. Several threads may read at once.
class HostBytes {
 public:
  virtual ~HostBytes() = default;
  // Copies the `size` bytes from `offset` on. Throws Error when a file does not have them.
  virtual void read(int64_t offset, int64_t size, std::byte* to) const = 0;
};

class BytesInMemory final : public HostBytes {
 public:
  explicit BytesInMemory(const std::byte* data) : data_(data) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override {
    std::memcpy(to, data_ + offset, static_cast<size_t>(size));
  }

 private:
  const std::byte* const data_;
};

// A matrix [rows, cols] among the host's bytes (from `offset` on, of any alignment), some columns
// of a wider one: `rowStride` elements lie from the beginning of a row to that of the next.
struct HostMatrix {
  const HostBytes& bytes;
  int64_t offset = 0;
  StorageType type = StorageType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t rowStride = 0;

  int64_t count() const { return rows * cols; }

  // Elements [begin, end), counted row after row, run by run: calls visit(first, at, count) with
  // the first element's number, its offset among the bytes and how many stand there side by side.
  template <class Visit>
  void forEachRun(int64_t begin, int64_t end, Visit visit) const {
    const bool isOneRun = rowStride == cols;
    const auto elementSize = static_cast<int64_t>(sizeOf(type));
    while (begin < end) {
      const int64_t row = begin / cols;
      const int64_t col = begin % cols;
      const int64_t runEnd = isOneRun ? end : std::min(end, (row + 1) * cols);
      visit(begin, offset + (row * rowStride + col) * elementSize, runEnd - begin);
      begin = runEnd;
    }
  }
};

// Host memory's bytes for a place on the device, both in words of 4.
struct HostToDevice {
  void* device = nullptr;
  const void* host = nullptr;
  size_t bytes = 0;
};

struct DeviceMemory {
  size_t total = 0;
  size_t free = 0;
  size_t allocated = 0;
  size_t peakAllocated = 0;
};

// Where a device's time went since it was opened, by its own clock; of the steps that are done.
struct StepTimes {
  int64_t numSteps = 0;
  double busyMs = 0;  // from a step's first operation to its last
  double idleMs = 0;  // from the end of a step to the beginning of the next
};

// Operations recorded once and then made again in one go, as a CUDA graph is.
class Graphs {
 public:
  virtual ~Graphs() = default;
  // Makes the operations that `record` makes, or again those it made under this key: they must be
  // the same, on the same memory, whatever is in it.
  virtual void launch(int32_t key, const std::function<void()>& record) = 0;
};

class Backend {
 public:
  // Takes null, or what the device failed with. Must not throw.
  using Done = std::function<void(std::exception_ptr)>;

  virtual ~Backend() = default;

  virtual std::string name() const = 0;
  virtual std::string capability() const = 0;
  virtual int numThreads() const = 0;
  virtual DeviceMemory memory() const = 0;
  virtual void resetPeakMemory() = 0;
  // Zeroed memory, 64-byte aligned (256 on CUDA). Throws Error OUT_OF_MEMORY with the figures;
  // `what` names it there. `release` takes what `allocate` gave.
  virtual void* allocate(size_t bytes, const char* what) = 0;
  virtual void release(void* memory, size_t bytes) noexcept = 0;
  // Host memory that the device copies from and to without staging; on the CPU plain memory.
  virtual void* allocateHost(size_t bytes, const char* what) = 0;
  virtual void releaseHost(void* memory, size_t bytes) noexcept = 0;
  // The same for host memory that is somebody else's, until `unpin`, which returns when no copy of
  // it is under way.
  virtual void pin(void* memory, size_t bytes) = 0;
  virtual void unpin(void* memory) noexcept = 0;
  virtual void copyToDevice(void* device, const void* host, size_t bytes) = 0;
  virtual void copyToHost(void* host, const void* device, size_t bytes) = 0;
  // All of these copies as one operation. The host memory, of any kind, is read before this
  // returns, and yet this does not wait for what was enqueued before.
  virtual void copyAllToDevice(std::span<const HostToDevice> copies) = 0;
  // Returns when all before it has run. Throws Error DEVICE_FAILED if the device is lost.
  virtual void synchronize() = 0;
  // A step is what lies between these two. Neither waits: `done` is called once the step's
  // operations have run, after those of the steps before, by a thread of the backend's choice. A
  // step that is begun and not ended was given up.
  virtual void beginStep() = 0;
  virtual void endStep(Done done) = 0;
  virtual StepTimes stepTimes() const = 0;
  // What is called from the one to the other is for a profiler, attached from outside, to record.
  // Throw Error NOT_SUPPORTED where there is none.
  virtual void startProfiler() = 0;
  virtual void stopProfiler() = 0;
  // Null where operations are always made one by one. To be dropped before the memory they use.
  virtual std::unique_ptr<Graphs> makeGraphs() { return nullptr; }
  // This device's part of a group of ranks, not connected yet. To be dropped before the backend.
  virtual std::unique_ptr<Communicator> makeCommunicator(const CommunicatorConfig& config) = 0;

  // Converts the host's elements into device memory: out [rows, cols] from `host` of that size.
  // Both types are the same or float types. Throws what reading them throws; `out` then holds
  // anything.
  virtual void upload(void* out, StorageType outType, const HostMatrix& host) = 0;
  // Copies device memory to host memory of any kind, quicker than copyToHost where it is much.
  // Returns when it is there.
  virtual void download(void* host, const void* in, int64_t bytes) = 0;
  // Normal(0, std) from a Philox stream keyed by (seed, index); constant for std 0 with that mean.
  virtual void fillRandom(void* out, StorageType type, int64_t count, float mean, float std,
                          uint64_t seed) = 0;
};

}  // namespace uniproc
