#include "ops/cuda/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {
namespace {

std::string inGiB(size_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / 0x1p30);
  return text;
}

std::string describeRequest(const char* what, size_t bytes) {
  return std::string("not enough memory for ") + what + ": " + std::to_string(bytes) + " bytes (" +
         inGiB(bytes) + ") requested";
}

}  // namespace

DeviceMemory MemoryAccount::usage() const {
  DeviceMemory memory;
  check(cudaMemGetInfo(&memory.free, &memory.total), "cudaMemGetInfo");
  memory.allocated = allocated_;
  memory.peakAllocated = peak_;
  return memory;
}

void* MemoryAccount::allocate(size_t bytes, const char* what) {
  void* result = nullptr;
  const cudaError_t status = cudaMalloc(&result, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // clear the error: the device still works
    const DeviceMemory memory = usage();
    throw Error("OUT_OF_MEMORY", describeRequest(what, bytes) + ", " + inGiB(memory.free) +
                                     " free of " + inGiB(memory.total) + ", " +
                                     inGiB(memory.allocated) + " of it used by this device");
  }
  check(status, "cudaMalloc");
  allocated_ += bytes;
  peak_ = std::max(peak_, allocated_);
  try {
    check(cudaMemsetAsync(result, 0, bytes, stream_), "cudaMemsetAsync");
  } catch (...) {
    release(result, bytes);
    throw;
  }
  return result;
}

void MemoryAccount::release(void* memory, size_t bytes) noexcept {
  if (!memory) return;
  allocated_ -= bytes;
  // On a failed device this fails as well; its memory is already lost.
  static_cast<void>(cudaFree(memory));
}

void* MemoryAccount::allocateHost(size_t bytes, const char* what) {
  void* result = nullptr;
  const cudaError_t status = cudaMallocHost(&result, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw Error("OUT_OF_MEMORY", describeRequest(what, bytes) + " as pinned host memory");
  }
  check(status, "cudaMallocHost");
  std::memset(result, 0, bytes);
  return result;
}

void MemoryAccount::releaseHost(void* memory) noexcept {
  if (memory) static_cast<void>(cudaFreeHost(memory));
}

Scratch::~Scratch() {
  for (const Piece& piece : pieces_) memory_.release(piece.data, piece.bytes);
}

void* Scratch::atLeast(size_t bytes) {
  if (pieces_.empty() || pieces_.back().bytes < bytes) {
    pieces_.reserve(pieces_.size() + 1);
    pieces_.push_back({memory_.allocate(bytes, "the kernels' scratch"), bytes});
  }
  return pieces_.back().data;
}

}  // namespace uniproc::cuda
