// Transfers weights from checkpoint files or pageable host memory (while the engine sleeps) to the
// device, and back to host memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cuda/pinned_buffer.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// Several threads copy, because file reads and page faults are slow. Each alternates between two
// pinned buffers: the device uses one while the thread fills the other.
class Transfer {
 public:
  Transfer(int device, cudaStream_t stream);

  // Converts host elements into device memory, on the device; the types must be equal, or both
  // float types. Returns when the elements have been read; later work on the stream sees them.
  void upload(void* out, StorageType outType, const HostMatrix& host);

  // Copies device memory after all work enqueued before; waits for it.
  void download(void* host, const void* in, int64_t bytes);

 private:
  struct Lane {
    Lane();

    PinnedBuffer buffers[2];
    int next = 0;

    PinnedBuffer& nextBuffer() {
      next = 1 - next;
      return buffers[1 - next];
    }
  };

  // Makes the device the thread's current one. Pins the lane's buffers on first use, so that the
  // threads do so at once.
  Lane& laneOf(int thread);

  const int device_;
  const cudaStream_t stream_;
  ThreadPool pool_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // one per thread
};

}  // namespace uniproc::cuda
