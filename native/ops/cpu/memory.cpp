#include "ops/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "base/error.h"
#include "ops/cpu/host.h"

namespace uniproc {
namespace {

// Allocations of at least this size are mapped directly, in huge pages if possible. The kernel
// commits pages on first write and gets them back at once on release, while the C library would
// keep freed memory per thread.
constexpr size_t kMappedBytes = size_t{64} << 10;
constexpr size_t kAlignment = 64;
constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t roundedUp(size_t bytes) {
  return std::max((bytes + kAlignment - 1) / kAlignment, size_t{1}) * kAlignment;
}

std::string inGiB(size_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / 0x1p30);
  return text;
}

void* tryAllocate(size_t bytes, size_t smallPageBytes) {
  if (bytes >= kMappedBytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)  // affects speed only
    const size_t small = std::min(bytes, smallPageBytes);
    if (small > 0) madvise(memory, small, MADV_NOHUGEPAGE);
    if (bytes > small) madvise(static_cast<char*>(memory) + small, bytes - small, MADV_HUGEPAGE);
#endif
    return memory;
  }
  void* memory = std::aligned_alloc(kAlignment, roundedUp(bytes));
  if (memory) std::memset(memory, 0, roundedUp(bytes));
  return memory;
}

// What the devices of this process have reserved: they take from the same memory.
std::mutex reservedMutex;
std::map<void*, size_t> reservedBytes;  // by address

// Bytes of a mapping that the system has not committed; 0 where it does not tell.
size_t uncommittedBytesOf(void* memory, size_t bytes) {
  size_t uncommitted = 0;
#if defined(__linux__)
  static const auto pageSize = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::array<unsigned char, size_t{16} << 10> pages;  // bit 0: the page is committed
  for (size_t at = 0; at < bytes; at += pages.size() * pageSize) {
    const size_t count = std::min((bytes - at + pageSize - 1) / pageSize, pages.size());
    if (mincore(static_cast<char*>(memory) + at, count * pageSize, pages.data()) != 0) return 0;
    for (size_t i = 0; i < count; ++i) uncommitted += (pages[i] & 1) == 0 ? pageSize : 0;
  }
#else
  static_cast<void>(memory);
#endif
  return std::min(uncommitted, bytes);
}

// Bytes of reserved memory that count as free in the system's figures.
size_t uncommittedBytes() {
  const std::lock_guard lock(reservedMutex);
  size_t sum = 0;
  for (const auto& [memory, bytes] : reservedBytes) sum += uncommittedBytesOf(memory, bytes);
  return sum;
}

}  // namespace

DeviceMemory MemoryAccount::usage() const {
  HostMemory host = hostMemory();
  host.free -= std::min(host.free, uncommittedBytes());
  // Allocated memory that has not been written to still counts as free in the system's figures.
  const size_t unclaimed = host.total - std::min(host.total, allocated_);
  return {host.total, std::min(host.free, unclaimed), allocated_, peak_};
}

void* MemoryAccount::allocate(size_t bytes, const char* what, Writes writes) {
  const DeviceMemory memory = usage();
  const size_t smallPageBytes = writes == Writes::kSparse ? kHugePageBytes : 0;
  void* result = bytes <= memory.free ? tryAllocate(bytes, smallPageBytes) : nullptr;
  if (!result) {
    throw Error("OUT_OF_MEMORY", std::string("not enough memory for ") + what + ": " +
                                     std::to_string(bytes) + " bytes (" + inGiB(bytes) +
                                     ") requested, " + inGiB(memory.free) + " free of " +
                                     inGiB(memory.total) + ", " + inGiB(memory.allocated) +
                                     " of it used by this device");
  }
  allocated_ += bytes;
  peak_ = std::max(peak_, allocated_);
  return result;
}

void MemoryAccount::reserve(void* memory, size_t bytes) {
  if (bytes < kMappedBytes) return;  // committed
  const std::lock_guard lock(reservedMutex);
  reservedBytes.emplace(memory, bytes);
}

void MemoryAccount::release(void* memory, size_t bytes) noexcept {
  if (!memory) return;
  allocated_ -= bytes;
  if (bytes >= kMappedBytes) {
    {
      const std::lock_guard lock(reservedMutex);
      reservedBytes.erase(memory);
    }
    munmap(memory, bytes);
  } else {
    std::free(memory);
  }
}

}  // namespace uniproc
