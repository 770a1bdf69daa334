#include "ops/cuda/pinned_buffer.h"

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/memory.h"

namespace uniproc::cuda {

PinnedBuffer::PinnedBuffer(size_t bytes, const char* what)
    : bytes_(bytes), memory_(static_cast<std::byte*>(MemoryAccount::allocateHost(bytes, what))) {}

PinnedBuffer::~PinnedBuffer() {
  static_cast<void>(cudaEventSynchronize(done_));
  MemoryAccount::releaseHost(memory_);
}

void PinnedBuffer::recordUse(cudaStream_t stream) {
  check(cudaEventRecord(done_, stream), "cudaEventRecord");
}

bool PinnedBuffer::isComplete() const {
  const cudaError_t status = cudaEventQuery(done_);
  if (status == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());  // not an error
    return false;
  }
  check(status, "cudaEventQuery");
  return true;
}

std::byte* PinnedBuffer::acquire() const {
  check(cudaEventSynchronize(done_), "cudaEventSynchronize");
  return memory_;
}

}  // namespace uniproc::cuda
