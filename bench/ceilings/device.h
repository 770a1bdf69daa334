// CUDA's handles as objects, and how long work takes on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>

namespace uniproc::ceilings {

class Stream {
 public:
  Stream();
  ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory() { static_cast<void>(cudaFree(data_)); }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
  }
  DeviceMemory& operator=(DeviceMemory&&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// Host memory that the device copies from without staging.
class PinnedMemory {
 public:
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory() { static_cast<void>(cudaFreeHost(data_)); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// How long to look: so many samples, the median of which counts, each of as many runs enqueued
// together as take about so long.
struct Effort {
  int samples;
  double secondsPerSample;
};

// Seconds of `run`, by the device's clock. Runs it before, untimed.
double secondsOf(cudaStream_t stream, Effort effort, const std::function<void()>& run);

// The same for what `record` enqueues, as a CUDA graph. Every operation in it must have run before,
// so that nothing is left to be loaded while it is captured.
double graphSecondsOf(cudaStream_t stream, Effort effort, const std::function<void()>& record);

}  // namespace uniproc::ceilings
