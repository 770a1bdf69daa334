// RAII wrappers of CUDA handles, and timing of work on the device.
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

// Host memory that the device reads directly.
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

// Length of a measurement: the median of `samples`; each sample enqueues as many runs as take about
// secondsPerSample.
struct Effort {
  int samples;
  double secondsPerSample;
};

// Seconds per `run`, by the device's clock, after an untimed run.
double secondsOf(cudaStream_t stream, Effort effort, const std::function<void()>& run);

// The same for a CUDA graph of what `record` enqueues. Every operation in it must have run before,
// so that nothing is loaded lazily during capture.
double graphSecondsOf(cudaStream_t stream, Effort effort, const std::function<void()>& record);

}  // namespace uniproc::ceilings
