// Device memory that other processes map (CUDA IPC), and its end.
#pragma once

#include <cstddef>

#include "comm/deadline.h"
#include "comm/tcp_farewell.h"
#include "ops/cuda/memory.h"

namespace uniproc::cuda {

// Frees memory of the account once each peer has let go of it: CUDA leaves undefined what becomes
// of a mapping of memory that is freed. What a peer may still map at the deadline is taken from the
// account and kept, until `freeKeptMemory` finds that it has let go, or the process ends.
void freeOnceLetGo(MemoryAccount& account, void* memory, size_t bytes, TcpFarewell peers,
                   const Deadline& deadline) noexcept;

// Of the whole process. Does not wait.
void freeKeptMemory() noexcept;

}  // namespace uniproc::cuda
