#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/staging.h"
#include "runtime/error.h"

namespace uniproc::cuda {
namespace {

constexpr const char* kWhat = "copies to the device";
constexpr size_t kLeastBytes = 64 << 10;  // holds a prompt of 16 thousand tokens
constexpr size_t kMostBytes = 4 << 20;    // of a piece; more goes in several
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

// One of `bytes` or more, or, where the host has no memory for that, one of those there are.
std::unique_ptr<PinnedBuffer> Staging::unusedPiece(size_t bytes) {
  std::unique_ptr<PinnedBuffer> piece;
  if (lent_.size() == kMostPieces) lent_.front()->take();
  if (!lent_.empty() && lent_.front()->isBack()) piece = takeFirst();
  if (piece && piece->bytes() >= bytes) return piece;
  try {
    return std::make_unique<PinnedBuffer>(std::bit_ceil(std::max(bytes, kLeastBytes)), kWhat);
  } catch (const Error& error) {
    if (error.code() != "OUT_OF_MEMORY" || (!piece && lent_.empty())) throw;
  }
  return piece ? std::move(piece) : takeFirst();
}

// Waits for the device where it has it still.
std::unique_ptr<PinnedBuffer> Staging::takeFirst() {
  lent_.front()->take();
  std::unique_ptr<PinnedBuffer> piece = std::move(lent_.front());
  lent_.pop_front();
  return piece;
}

void Staging::copy(std::span<const HostToDevice> copies) {
  size_t left = 0;
  for (const HostToDevice& copy : copies) left += copy.bytes;
  size_t index = 0;
  size_t done = 0;  // of the copy at `index`
  while (left > 0) {
    std::unique_ptr<PinnedBuffer> piece = unusedPiece(std::min(left, kMostBytes));
    std::array<HostToDevice, kMostParts> parts{};
    size_t numParts = 0;
    size_t room = piece->bytes();
    while (index < copies.size() && numParts < kMostParts && room > 0) {
      const HostToDevice& copy = copies[index];
      const size_t bytes = std::min(copy.bytes - done, room);
      if (bytes > 0) {
        parts[numParts++] = {static_cast<std::byte*>(copy.device) + done,
                             static_cast<const std::byte*>(copy.host) + done, bytes};
      }
      done += bytes;
      room -= bytes;
      left -= bytes;
      if (done < copy.bytes) break;
      ++index;
      done = 0;
    }
    copyParts(std::span(parts).first(numParts), std::move(piece));
  }
}

// They fit the piece.
void Staging::copyParts(std::span<const HostToDevice> copies, std::unique_ptr<PinnedBuffer> piece) {
  size_t most = 0;
  Parts parts{};
  std::byte* next = piece->take();
  for (size_t i = 0; i < copies.size(); ++i) {
    const HostToDevice& copy = copies[i];
    most = std::max(most, copy.bytes);
    std::memcpy(next, copy.host, copy.bytes);
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
