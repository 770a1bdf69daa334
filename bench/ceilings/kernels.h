#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace uniproc::ceilings {

// out [count] bfloat16, count even: normal(0, std).
void fillRandom(void* out, size_t count, float std, uint64_t seed, cudaStream_t stream);

// Reads data, bytes a multiple of 16, once, and nothing else: 2 blocks of 1,024 threads on each
// multiprocessor, loads of 16 bytes that no cache keeps. `sink`, 16 bytes, is there so that the
// loads are needed.
void readAll(const void* data, size_t bytes, void* sink, int numMultiprocessors,
             cudaStream_t stream);

}  // namespace uniproc::ceilings
