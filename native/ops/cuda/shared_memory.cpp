#include "ops/cuda/shared_memory.h"

#include <cuda_runtime_api.h>

#include <list>
#include <mutex>
#include <utility>

namespace uniproc::cuda {
namespace {

struct Retained {
  void* memory;
  TcpReleaseBarrier peers;
};

std::mutex mutex;  // guards the list
std::list<Retained> retained;

}  // namespace

void freeAfterPeersRelease(MemoryAccount& account, void* memory, size_t bytes,
                           TcpReleaseBarrier peers, const Deadline& deadline) noexcept {
  if (peers.waitForPeers(deadline)) {
    account.release(memory, bytes);
    return;
  }
  account.disown(bytes);
  try {
    std::lock_guard lock(mutex);
    retained.push_back({memory, std::move(peers)});
  } catch (...) {  // no memory for the list: the process's end frees it
  }
}

void freeRetainedMemory() noexcept {
  std::lock_guard lock(mutex);
  std::erase_if(retained, [](Retained& each) {
    if (!each.peers.waitForPeers(Deadline(0))) return false;
    static_cast<void>(cudaFree(each.memory));
    return true;
  });
}

}  // namespace uniproc::cuda
