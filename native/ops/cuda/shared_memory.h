// Device memory that other processes map (CUDA IPC), and its release.
#pragma once

#include <cstddef>

#include "comm/deadline.h"
#include "comm/tcp_release_barrier.h"
#include "ops/cuda/memory.h"

namespace uniproc::cuda {

// Frees memory of the account once every peer has unmapped it, since freeing mapped memory is
// undefined in CUDA. Memory that a peer may still map at the deadline is removed from the account
// and retained, until `freeRetainedMemory` finds it unmapped or the process ends.
void freeAfterPeersRelease(MemoryAccount& account, void* memory, size_t bytes,
                           TcpReleaseBarrier peers, const Deadline& deadline) noexcept;

// Frees the process's retained memory that peers have unmapped. Does not block.
void freeRetainedMemory() noexcept;

}  // namespace uniproc::cuda
