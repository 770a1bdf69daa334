// The way of a checkpoint's bytes from a mapped file to the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cpu/thread_pool.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// Several threads copy from the mapped pages, where reading the file and page faults take their
// time, each into two pinned buffers in turn: while the device takes one, the other is filled.
class Uploader {
 public:
  Uploader(int device, cudaStream_t stream);

  // Converts [count] elements of host memory into device memory, on the device. Returns when the
  // host memory has been read; what is enqueued on the stream from then on finds the elements.
  void run(void* out, DType outType, const void* host, DType hostType, int64_t count);

 private:
  // A pinned buffer and the event that tells that the device has read it.
  class PinnedBuffer {
   public:
    PinnedBuffer();
    ~PinnedBuffer();
    PinnedBuffer(const PinnedBuffer&) = delete;
    PinnedBuffer& operator=(const PinnedBuffer&) = delete;

    std::byte* waitUntilRead();
    void readUpTo(cudaStream_t stream);

   private:
    std::byte* memory_ = nullptr;
    cudaEvent_t read_ = nullptr;
  };
  struct Lane {
    PinnedBuffer buffers[2];
    int next = 0;
  };

  const int device_;
  const cudaStream_t stream_;
  ThreadPool pool_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // one for each thread
};

}  // namespace uniproc::cuda
