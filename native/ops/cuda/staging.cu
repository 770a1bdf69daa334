#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/staging.h"

namespace uniproc::cuda {
namespace {

constexpr const char* kPurpose = "copies to the device";
constexpr size_t kMinBufferBytes = 64 << 10;  // holds a prompt of 16 thousand tokens
constexpr size_t kMaxBufferBytes = 4 << 20;   // per buffer; larger copies use several
constexpr size_t kInitialBuffers = 32;
constexpr size_t kMaxBuffers = 256;
constexpr size_t kMaxParts = 16;  // per launch
constexpr int kThreads = 256;
constexpr uint32_t kMaxBlocks = 512;  // per part

struct Part {
  uint32_t* to;
  const uint32_t* from;
  uint32_t words;
};

struct Parts {
  Part parts[kMaxParts];
};

// Grid: (words of a part / 256, parts). Bound by the bus; for small copies by one round trip over
// it.
__global__ void __launch_bounds__(kThreads) scatterParts(const __grid_constant__ Parts parts) {
  const Part& part = parts.parts[blockIdx.y];
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < part.words;
       i += gridDim.x * kThreads) {
    part.to[i] = part.from[i];
  }
}

}  // namespace

Staging::Staging(cudaStream_t stream) : stream_(stream) {
  for (size_t i = 0; i < kInitialBuffers; ++i) {
    inFlight_.push_back(std::make_unique<PinnedBuffer>(kMinBufferBytes, kPurpose));
  }
}

// Returns an idle buffer of at least `bytes`, or a smaller one if the host has no memory for that.
std::unique_ptr<PinnedBuffer> Staging::idleBuffer(size_t bytes) {
  std::unique_ptr<PinnedBuffer> buffer;
  if (inFlight_.size() == kMaxBuffers) inFlight_.front()->acquire();
  if (!inFlight_.empty() && inFlight_.front()->isComplete()) buffer = waitForOldest();
  if (buffer && buffer->bytes() >= bytes) return buffer;
  try {
    return std::make_unique<PinnedBuffer>(std::bit_ceil(std::max(bytes, kMinBufferBytes)),
                                          kPurpose);
  } catch (const Error& error) {
    if (error.code() != "OUT_OF_MEMORY" || (!buffer && inFlight_.empty())) throw;
  }
  return buffer ? std::move(buffer) : waitForOldest();
}

// Waits until the device no longer uses the oldest buffer.
std::unique_ptr<PinnedBuffer> Staging::waitForOldest() {
  inFlight_.front()->acquire();
  std::unique_ptr<PinnedBuffer> buffer = std::move(inFlight_.front());
  inFlight_.pop_front();
  return buffer;
}

void Staging::copy(std::span<const HostToDevice> copies) {
  size_t left = 0;
  for (const HostToDevice& copy : copies) left += copy.bytes;
  size_t index = 0;
  size_t done = 0;  // bytes copied of the copy at `index`
  while (left > 0) {
    std::unique_ptr<PinnedBuffer> buffer = idleBuffer(std::min(left, kMaxBufferBytes));
    std::array<HostToDevice, kMaxParts> parts{};
    size_t numParts = 0;
    size_t room = buffer->bytes();
    while (index < copies.size() && numParts < kMaxParts && room > 0) {
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
    copyParts(std::span(parts).first(numParts), std::move(buffer));
  }
}

// The copies must fit the buffer.
void Staging::copyParts(std::span<const HostToDevice> copies,
                        std::unique_ptr<PinnedBuffer> buffer) {
  size_t most = 0;
  Parts parts{};
  std::byte* next = buffer->acquire();
  for (size_t i = 0; i < copies.size(); ++i) {
    const HostToDevice& copy = copies[i];
    most = std::max(most, copy.bytes);
    std::memcpy(next, copy.host, copy.bytes);
    parts.parts[i] = {static_cast<uint32_t*>(copy.device), reinterpret_cast<const uint32_t*>(next),
                      static_cast<uint32_t>(copy.bytes / sizeof(uint32_t))};
    next += copy.bytes;
  }
  const auto words = static_cast<uint32_t>(most / sizeof(uint32_t));
  const dim3 grid(std::min(ceilDiv(words, uint32_t{kThreads}), kMaxBlocks),
                  static_cast<unsigned>(copies.size()));
  scatterParts<<<grid, kThreads, 0, stream_>>>(parts);
  check(cudaGetLastError(), "copyAllToDevice");
  buffer->recordUse(stream_);
  inFlight_.push_back(std::move(buffer));
}

}  // namespace uniproc::cuda
