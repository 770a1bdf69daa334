// The way of weights to the device, from a checkpoint's file or from the host memory (not pinned)
// that keeps them while the engine sleeps, and back to that memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cpu/thread_pool.h"
#include "ops/cuda/pinned_buffer.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// Several threads copy, as reading files and page faults take their time, each by way of two pinned
// buffers in turn: while the device has one, the thread has the other.
class Transfer {
 public:
  Transfer(int device, cudaStream_t stream);

  // Converts the host's elements into device memory, on the device; both types are the same or
  // float types. Returns when they have been read; what is enqueued on the stream from then on
  // finds the elements.
  void upload(void* out, StorageType outType, const HostMatrix& host);

  // Copies device memory, as what was enqueued before leaves it. Returns when the host has it.
  void download(void* host, const void* in, int64_t bytes);

 private:
  struct Lane {
    Lane();

    PinnedBuffer buffers[2];
    int next = 0;

    PinnedBuffer& turn() {
      next = 1 - next;
      return buffers[1 - next];
    }
  };

  const int device_;
  const cudaStream_t stream_;
  ThreadPool pool_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // one for each thread
};

}  // namespace uniproc::cuda
