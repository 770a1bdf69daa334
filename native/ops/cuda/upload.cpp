#include "ops/cuda/upload.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/memory.h"

namespace uniproc::cuda {
namespace {

constexpr int64_t kBufferBytes = int64_t{2} << 20;

// A thread copies some 3 GB/s from mapped pages, so that eight keep up with the bus.
int numCopyingThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 1, 8);
}

}  // namespace

Uploader::PinnedBuffer::PinnedBuffer() {
  check(cudaEventCreateWithFlags(&read_, cudaEventDisableTiming | cudaEventBlockingSync),
        "cudaEventCreateWithFlags");
  try {
    memory_ =
        static_cast<std::byte*>(MemoryAccount::allocateHost(kBufferBytes, "loading the weights"));
  } catch (...) {
    static_cast<void>(cudaEventDestroy(read_));
    throw;
  }
}

Uploader::PinnedBuffer::~PinnedBuffer() {
  static_cast<void>(cudaEventSynchronize(read_));
  static_cast<void>(cudaEventDestroy(read_));
  MemoryAccount::releaseHost(memory_);
}

std::byte* Uploader::PinnedBuffer::waitUntilRead() {
  check(cudaEventSynchronize(read_), "cudaEventSynchronize");
  return memory_;
}

void Uploader::PinnedBuffer::readUpTo(cudaStream_t stream) {
  check(cudaEventRecord(read_, stream), "cudaEventRecord");
}

Uploader::Uploader(int device, cudaStream_t stream)
    : device_(device), stream_(stream), pool_(numCopyingThreads()) {
  for (int i = 0; i < pool_.numThreads(); ++i) lanes_.push_back(std::make_unique<Lane>());
}

void Uploader::run(void* out, DType outType, const void* host, DType hostType, int64_t count) {
  const auto outSize = static_cast<int64_t>(sizeOf(outType));
  const auto hostSize = static_cast<int64_t>(sizeOf(hostType));
  const int64_t perBuffer = kBufferBytes / hostSize;
  pool_.parallelFor(count, perBuffer, [&](int64_t begin, int64_t end, int part) {
    check(cudaSetDevice(device_), "cudaSetDevice");
    Lane& lane = *lanes_[static_cast<size_t>(part)];
    for (int64_t at = begin; at < end; at += perBuffer) {
      PinnedBuffer& buffer = lane.buffers[lane.next];
      lane.next = 1 - lane.next;
      const int64_t size = std::min(perBuffer, end - at);
      std::byte* pinned = buffer.waitUntilRead();
      std::memcpy(pinned, static_cast<const std::byte*>(host) + at * hostSize,
                  static_cast<size_t>(size * hostSize));
      std::byte* to = static_cast<std::byte*>(out) + at * outSize;
      if (outType == hostType) {
        check(cudaMemcpyAsync(to, pinned, static_cast<size_t>(size * outSize),
                              cudaMemcpyHostToDevice, stream_),
              "cudaMemcpyAsync");
      } else {
        convert(to, outType, pinned, hostType, size, stream_);  // reads over the bus
        check(cudaGetLastError(), "convert");
      }
      buffer.readUpTo(stream_);
    }
  });
}

}  // namespace uniproc::cuda
