#include "ops/cuda/shared_memory.h"

#include <cuda_runtime_api.h>

#include <list>
#include <mutex>
#include <utility>

namespace uniproc::cuda {
namespace {

struct Kept {
  void* memory;
  TcpFarewell peers;
};

std::mutex mutex;  // of the list
std::list<Kept> kept;

}  // namespace

void freeOnceLetGo(MemoryAccount& account, void* memory, size_t bytes, TcpFarewell peers,
                   const Deadline& deadline) noexcept {
  if (peers.haveAllLetGo(deadline)) {
    account.release(memory, bytes);
    return;
  }
  account.disown(bytes);
  try {
    std::lock_guard lock(mutex);
    kept.push_back({memory, std::move(peers)});
  } catch (...) {  // no memory for the list: then it is the process's end that frees it
  }
}

void freeKeptMemory() noexcept {
  std::lock_guard lock(mutex);
  std::erase_if(kept, [](Kept& each) {
    if (!each.peers.haveAllLetGo(Deadline(0))) return false;
    static_cast<void>(cudaFree(each.memory));
    return true;
  });
}

}  // namespace uniproc::cuda
