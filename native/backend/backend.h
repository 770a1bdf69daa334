// The parts of a backend other than arithmetic: device memory, steps, recorded graphs.
//
// Every pointer is device memory unless it says host. The device's thread makes all calls, in
// order. A backend may run them asynchronously on one stream in that order.
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
#include <string_view>

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

// Host bytes, in memory or in a file. Several threads may read at once.
class HostBytes {
 public:
  virtual ~HostBytes() = default;
  // Copies `size` bytes from `offset`. Throws Error if a file is shorter than that.
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

// A matrix [rows, cols] in host bytes, at `offset`, without alignment. It may be a column range of
// a wider matrix: rows begin `rowStride` elements apart.
struct HostMatrix {
  const HostBytes& bytes;
  int64_t offset = 0;
  StorageType type = StorageType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t rowStride = 0;

  int64_t count() const { return rows * cols; }

  // Visits elements [begin, end), in row-major order, as contiguous runs: visit(first element's
  // index, its byte offset, number of elements).
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

// A copy from host to device memory; both addresses and the size are multiples of 4.
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

// Time spent on completed steps since the device was opened, by the device's own clock.
struct StepTimes {
  int64_t numSteps = 0;
  double busyMs = 0;  // from a step's first operation to its last
  double idleMs = 0;  // from the end of a step to the beginning of the next
};

// Operations that are recorded once and then replayed, as a CUDA graph.
class Graphs {
 public:
  virtual ~Graphs() = default;
  // Runs the operations of `record`, or replays those recorded under this key. For one key they
  // must be the same operations on the same addresses; the memory's contents may differ.
  virtual void launch(int32_t key, const std::function<void()>& record) = 0;
};

class Backend {
 public:
  // Receives null, or the device's error. Must not throw.
  using Done = std::function<void(std::exception_ptr)>;

  virtual ~Backend() = default;

  virtual std::string name() const = 0;
  virtual std::string capability() const = 0;
  virtual int numThreads() const = 0;
  virtual DeviceMemory memory() const = 0;
  virtual void resetPeakMemory() = 0;
  // Whether operations prepare themselves on first use: take device memory of their own, load
  // kernels, choose one for a shape. If so, the memory of a step is known only from running it, and
  // each shape must be run once before it is fast.
  virtual bool preparesOnFirstUse() const { return true; }
  // Returns zeroed memory, 64-byte aligned (256 on CUDA). Throws Error OUT_OF_MEMORY with the
  // sizes; the message names `what`. `release` takes memory from this and `allocateSparse` only.
  virtual void* allocate(size_t bytes, const char* what) = 0;
  // The same for memory that is written in small parts over time, as a KV cache is.
  virtual void* allocateSparse(size_t bytes, const char* what) { return allocate(bytes, what); }
  virtual void release(void* memory, size_t bytes) noexcept = 0;
  // Counts memory from `allocate` as used, as if it had been written to: the system may back it
  // with pages on first write, and call it free until then.
  virtual void reserve(void*, size_t) {}
  // Host memory that the device reads and writes directly (pinned on CUDA, plain memory on the
  // CPU).
  virtual void* allocateHost(size_t bytes, const char* what) = 0;
  virtual void releaseHost(void* memory, size_t bytes) noexcept = 0;
  // Pin host memory that another owner allocated. `unpin` waits for copies in flight.
  virtual void pin(void* memory, size_t bytes) = 0;
  virtual void unpin(void* memory) noexcept = 0;
  virtual void copyToDevice(void* device, const void* host, size_t bytes) = 0;
  virtual void copyToHost(void* host, const void* device, size_t bytes) = 0;
  // Makes all copies as one operation. Reads the host memory, of any kind, before it returns,
  // without waiting for operations enqueued before.
  virtual void copyAllToDevice(std::span<const HostToDevice> copies) = 0;
  // Returns when all earlier operations have run. Throws Error DEVICE_FAILED if the device is lost.
  virtual void synchronize() = 0;
  // beginStep and endStep enclose a step; neither waits. `done` is called on a thread of the
  // backend's choice once the step's operations and all earlier ones have run. beginStep discards a
  // step that was begun and not ended.
  virtual void beginStep() = 0;
  virtual void endStep(Done done) = 0;
  virtual StepTimes stepTimes() const = 0;
  // Start and stop recording by an attached profiler. Throw Error NOT_SUPPORTED on a device without
  // one.
  virtual void startProfiler() = 0;
  virtual void stopProfiler() = 0;
  // Chooses an algorithm for each matrix product that has run so far, by timing those that return
  // the same bits. `known` is an earlier result or empty; its products are not timed again. Waits.
  // Returns the choices as text, empty if the backend has none to make.
  virtual std::string chooseProductAlgorithms(std::string_view /* known */) { return {}; }
  // Returns null if the backend does not record operations. Destroy it before the memory it uses.
  virtual std::unique_ptr<Graphs> makeGraphs() { return nullptr; }
  // This device's communicator, not connected yet. Destroy it before the backend.
  virtual std::unique_ptr<Communicator> makeCommunicator(const CommunicatorConfig& config) = 0;

  // Converts host elements to device memory: out [rows, cols] from `host` of the same shape. The
  // types must be equal, or both float types. Throws what reading `host` throws; the contents of
  // `out` are then undefined.
  virtual void upload(void* out, StorageType outType, const HostMatrix& host) = 0;
  // Copies device memory to host memory of any kind and waits for it. Faster than copyToHost for
  // large copies.
  virtual void download(void* host, const void* in, int64_t bytes) = 0;
  // Fills `out` from Normal(mean, std) by Philox keyed with (seed, index); std 0 gives the constant
  // `mean`.
  virtual void fillRandom(void* out, StorageType type, int64_t count, float mean, float std,
                          uint64_t seed) = 0;
};

}  // namespace uniproc
