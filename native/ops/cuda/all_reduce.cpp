#include "ops/cuda/all_reduce.h"

#include <utility>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/shared_memory.h"

namespace uniproc::cuda {
namespace {

constexpr uintptr_t kAlignment = 16;

DType elementType(CommType type) {
  switch (type) {
    case CommType::kFloat16:
      return DType::kFloat16;
    case CommType::kBFloat16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

}  // namespace

PeerAllReduce::PeerAllReduce(int32_t rank, int32_t worldSize, int device, const uint32_t* failed,
                             MemoryAccount& memory, cudaStream_t stream)
    : memory_(memory), stream_(stream) {
  freeRetainedMemory();
  ranks_.rank = rank;
  ranks_.worldSize = worldSize;
  ranks_.failed = failed;
  check(cudaDeviceGetAttribute(&ranks_.numMultiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  void* memoryOfRank =
      memory_.allocate(sizeof(Exchange), "the all-reduce buffers shared between GPUs");
  auto* own = static_cast<Exchange*>(memoryOfRank);
  ranks_.exchanges[rank] = own;
  try {
    check(cudaIpcGetMemHandle(&handle_, own), "cudaIpcGetMemHandle");
    check(cudaMemsetAsync(own->inbox, Exchange::kEmptyByte, sizeof own->inbox, stream),
          "cudaMemsetAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");  // before a peer writes
  } catch (...) {
    memory_.release(own, sizeof(Exchange));
    throw;
  }
}

void PeerAllReduce::close(const Deadline& deadline) noexcept {
  for (int32_t peer = 0; peer < ranks_.worldSize; ++peer) {
    if (peer == ranks_.rank || !ranks_.exchanges[peer]) continue;
    static_cast<void>(cudaIpcCloseMemHandle(std::exchange(ranks_.exchanges[peer], nullptr)));
  }
  releaseBarrier_.announceRelease();
  if (Exchange* own = std::exchange(ranks_.exchanges[ranks_.rank], nullptr)) {
    freeAfterPeersRelease(memory_, own, sizeof(Exchange), std::move(releaseBarrier_), deadline);
  }
}

bool PeerAllReduce::map(std::span<const cudaIpcMemHandle_t> handles,
                        TcpReleaseBarrier releaseBarrier) {
  releaseBarrier_ = std::move(releaseBarrier);
  for (int32_t peer = 0; peer < ranks_.worldSize; ++peer) {
    if (peer == ranks_.rank) continue;
    void* theirs = nullptr;
    if (cudaIpcOpenMemHandle(&theirs, handles[peer], cudaIpcMemLazyEnablePeerAccess) !=
        cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // clear the error: the device still works
      return false;
    }
    ranks_.exchanges[peer] = static_cast<Exchange*>(theirs);
  }
  return true;
}

bool PeerAllReduce::supports(const void* data, int64_t bytes) const {
  return bytes <= peerSumLimits(ranks_.worldSize).most && bytes % kAlignment == 0 &&
         reinterpret_cast<uintptr_t>(data) % kAlignment == 0;
}

bool PeerAllReduce::allReduce(void* data, int64_t count, CommType type, ReduceOp op) {
  if (op != ReduceOp::kSum || type == CommType::kInt64) return false;
  if (!supports(data, count * static_cast<int64_t>(sizeOf(type)))) return false;
  peerSum(data, count, elementType(type), ranks_, stream_);
  return true;
}

bool PeerAllReduce::sumRmsNorm(const void* x, int32_t numTokens, const NormOfSum& norm,
                               DType type) {
  const int64_t bytes = int64_t{numTokens} * norm.size * static_cast<int64_t>(sizeOf(type));
  if (!norm.isSupported(type) || !supports(x, bytes)) return false;
  peerSumRmsNorm(x, numTokens, norm, type, ranks_, stream_);
  return true;
}

}  // namespace uniproc::cuda
