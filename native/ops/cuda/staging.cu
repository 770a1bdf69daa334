#include <algorithm>
#include <bit>
#include <cstring>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/staging.h"

namespace uniproc::cuda {
namespace {

constexpr const char* kWhat = "copies to the device";
constexpr size_t kLeastBytes = 64 << 10;  // holds a prompt of 16 thousand tokens
constexpr size_t kFirstPieces = 32;
constexpr size_t kMostPieces = 256;
constexpr size_t kMostParts = 16;  // of one launch
constexpr int kThreads = 256;
constexpr uint32_t kMostBlocks = 512;  // of a part

struct Part {
  uint32_t* to;
  const uint32_t* from;
  uint32_t words;
};

struct Parts {
  Part parts[kMostParts];
};

// Grid: (a part's words / 256, parts). Bound by the bus, and where it is little by the way there
// and back, which each thread goes once.
__global__ void __launch_bounds__(kThreads) scatterParts(const __grid_constant__ Parts parts) {
  const Part& part = parts.parts[blockIdx.y];
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < part.words;
       i += gridDim.x * kThreads) {
    part.to[i] = part.from[i];
  }
}

}  // namespace

Staging::Staging(cudaStream_t stream) : stream_(stream) {
  for (size_t i = 0; i < kFirstPieces; ++i) {
    lent_.push_back(std::make_unique<PinnedBuffer>(kLeastBytes, kWhat));
  }
}

std::unique_ptr<PinnedBuffer> Staging::unusedPiece(size_t bytes) {
  std::unique_ptr<PinnedBuffer> piece;
  if (lent_.size() == kMostPieces) lent_.front()->take();
  if (!lent_.empty() && lent_.front()->isBack()) {
    piece = std::move(lent_.front());
    lent_.pop_front();
  }
  if (!piece || piece->bytes() < bytes) {
    piece = std::make_unique<PinnedBuffer>(std::bit_ceil(std::max(bytes, kLeastBytes)), kWhat);
  }
  return piece;
}

void Staging::copy(std::span<const HostToDevice> copies) {
  for (; !copies.empty(); copies = copies.subspan(std::min(copies.size(), kMostParts))) {
    copyParts(copies.first(std::min(copies.size(), kMostParts)));
  }
}

void Staging::copyParts(std::span<const HostToDevice> copies) {
  size_t bytes = 0;
  size_t most = 0;
  for (const HostToDevice& copy : copies) {
    bytes += copy.bytes;
    most = std::max(most, copy.bytes);
  }
  if (bytes == 0) return;

  std::unique_ptr<PinnedBuffer> piece = unusedPiece(bytes);
  Parts parts{};
  std::byte* next = piece->take();
  for (size_t i = 0; i < copies.size(); ++i) {
    const HostToDevice& copy = copies[i];
    if (copy.bytes > 0) std::memcpy(next, copy.host, copy.bytes);
    parts.parts[i] = {static_cast<uint32_t*>(copy.device), reinterpret_cast<const uint32_t*>(next),
                      static_cast<uint32_t>(copy.bytes / sizeof(uint32_t))};
    next += copy.bytes;
  }
  const auto words = static_cast<uint32_t>(most / sizeof(uint32_t));
  const dim3 grid(std::min(ceilDiv(words, uint32_t{kThreads}), kMostBlocks),
                  static_cast<unsigned>(copies.size()));
  scatterParts<<<grid, kThreads, 0, stream_>>>(parts);
  check(cudaGetLastError(), "copyAllToDevice");
  piece->lend(stream_);
  lent_.push_back(std::move(piece));
}

}  // namespace uniproc::cuda
