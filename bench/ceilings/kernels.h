#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace uniproc::ceilings {

// out [count] bfloat16, count even: normal(0, std).
void fillRandom(void* out, size_t count, float std, uint64_t seed, cudaStream_t stream);

// Reads data once (bytes a multiple of 16): 2 blocks of 1,024 threads per multiprocessor, uncached
// loads of 16 bytes. `sink`, 16 bytes, keeps the compiler from removing the loads.
void readAll(const void* data, size_t bytes, void* sink, int numMultiprocessors,
             cudaStream_t stream);

}  // namespace uniproc::ceilings
