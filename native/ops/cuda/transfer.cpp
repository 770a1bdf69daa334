#include "ops/cuda/transfer.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"

namespace uniproc::cuda {
namespace {

constexpr const char* kPurpose = "moving the weights";
// Of 512 KiB, twelve threads copy 31 GB/s, of 1 MiB 46, of 2 MiB 51; but matrices of 8 to 33 MB
// divide into more parts, and pinning takes 0.5 ms per MiB.
constexpr int64_t kBufferBytes = int64_t{1} << 20;

// A thread reads about 4.5 GB/s from the page cache, so twelve can saturate a PCIe 5 bus (51 of
// 55 GB/s on an H200 with buffers of 2 MiB; eight: 38). Copying from a mapping of the file with
// non-temporal stores, from which no cache is filled, was slower: 38 GB/s with twelve threads.
int numCopyingThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) * 3 / 4, 1, 12);
}

}  // namespace

Transfer::Lane::Lane() : buffers{{kBufferBytes, kPurpose}, {kBufferBytes, kPurpose}} {}

Transfer::Transfer(int device, cudaStream_t stream)
    : device_(device), stream_(stream), pool_(numCopyingThreads()), lanes_(pool_.numThreads()) {}

Transfer::Lane& Transfer::laneOf(int thread) {
  check(cudaSetDevice(device_), "cudaSetDevice");
  std::unique_ptr<Lane>& lane = lanes_[static_cast<size_t>(thread)];
  if (!lane) lane = std::make_unique<Lane>();
  return *lane;
}

void Transfer::upload(void* out, StorageType outType, const HostMatrix& host) {
  const auto outSize = static_cast<int64_t>(sizeOf(outType));
  const auto hostSize = static_cast<int64_t>(sizeOf(host.type));
  const int64_t perBuffer = kBufferBytes / hostSize;
  // In whole buffers, so that each starts at an alignment at which the kernel converts several
  // elements at once.
  const int64_t numBuffers = (host.count() + perBuffer - 1) / perBuffer;
  pool_.parallelFor(numBuffers, 1, [&](int64_t begin, int64_t end, int thread) {
    Lane& lane = laneOf(thread);
    for (int64_t i = begin; i < end; ++i) {
      PinnedBuffer& buffer = lane.nextBuffer();
      const int64_t at = i * perBuffer;
      const int64_t size = std::min(perBuffer, host.count() - at);
      std::byte* pinned = buffer.acquire();
      host.forEachRun(at, at + size, [&](int64_t first, int64_t from, int64_t count) {
        host.bytes.read(from, count * hostSize, pinned + (first - at) * hostSize);
      });
      std::byte* to = static_cast<std::byte*>(out) + at * outSize;
      if (outType == host.type) {
        check(cudaMemcpyAsync(to, pinned, static_cast<size_t>(size * outSize),
                              cudaMemcpyHostToDevice, stream_),
              "cudaMemcpyAsync");
      } else {
        convert(to, dtypeOf(outType), pinned, dtypeOf(host.type), size,
                stream_);  // reads over the bus
        check(cudaGetLastError(), "convert");
      }
      buffer.recordUse(stream_);
    }
  });
}

void Transfer::download(void* host, const void* in, int64_t bytes) {
  pool_.parallelFor(bytes, kBufferBytes, [&](int64_t begin, int64_t end, int thread) {
    Lane& lane = laneOf(thread);
    const auto sizeAt = [&](int64_t at) {
      return static_cast<size_t>(std::min(kBufferBytes, end - at));
    };
    const auto fetch = [&](int64_t at) {
      PinnedBuffer& buffer = lane.nextBuffer();
      check(cudaMemcpyAsync(buffer.acquire(), static_cast<const std::byte*>(in) + at, sizeAt(at),
                            cudaMemcpyDeviceToHost, stream_),
            "cudaMemcpyAsync");
      buffer.recordUse(stream_);
      return &buffer;
    };
    PinnedBuffer* fetched = begin < end ? fetch(begin) : nullptr;
    for (int64_t at = begin; at < end; at += kBufferBytes) {
      PinnedBuffer* next = at + kBufferBytes < end ? fetch(at + kBufferBytes) : nullptr;
      std::memcpy(static_cast<std::byte*>(host) + at, fetched->acquire(), sizeAt(at));
      fetched = next;
    }
  });
}

}  // namespace uniproc::cuda
