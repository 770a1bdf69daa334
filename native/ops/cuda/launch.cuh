// Launches the forward pass's kernels with programmatic dependent launch.
//
// On Hopper and later, blocks of a kernel may become resident while the previous kernel in the
// stream finishes, and wait there, which hides most of the launch latency (graphs keep this). It
// matters in a decode step, where kernels run for microseconds.
//
// Every thread of such a kernel calls one of the two functions below before it reads or writes
// shared data. The wait returns once the previous kernel has ended and its writes are visible. If
// that kernel was launched this way too, it ended after its own wait; if not, it started after all
// earlier work. So when the wait returns, all earlier work in the stream is done, and the kernel
// may read or overwrite anything. A kernel in which all blocks return without waiting would break
// this for later kernels.
//
// Weights may be read before the wait, since no kernel launched this way writes them. So may the
// batch and the block tables: only the kernels of prepareInputs write them in a step, and these do
// not let the next kernel start before they have ended. For the same reason so may the keys and
// values of earlier steps.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace uniproc::cuda {

// Keeps the next kernel's blocks out until this kernel ends, for kernels that need the full
// bandwidth.
__device__ inline void waitForPreviousAlone() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Lets the next kernel's blocks become resident as this kernel's blocks finish.
__device__ inline void waitForPrevious() {
  waitForPreviousAlone();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// launch.cu: whether the kernels as run on this thread's device contain the wait; kernels compiled
// for earlier GPUs do not.
bool kernelsWait();

// As `launch`, in clusters of (clusterSize, 1, 1) blocks; requires kernelsWait().
template <class... Parameters, class... Arguments>
void launchClusters(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                    unsigned clusterSize, size_t sharedBytes, cudaStream_t stream,
                    Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {clusterSize, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = kernelsWait() ? (clusterSize > 1 ? 2 : 1) : 0;
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// kernel<<<grid, threads, sharedBytes, stream>>>(arguments...), for a kernel that waits for the
// previous one. Check cudaGetLastError after it.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t sharedBytes,
            cudaStream_t stream, Arguments&&... arguments) {
  launchClusters(kernel, grid, threads, 1, sharedBytes, stream,
                 std::forward<Arguments>(arguments)...);
}

}  // namespace uniproc::cuda
