// Launches the forward pass's kernels with programmatic dependent launch.
//
// On Hopper and later, blocks of a kernel may become resident while the previous kernel in the
// stream still runs, and wait there, which hides the launch latency and lets a kernel read weights
// in the meantime (graphs keep this). It matters in a decode step, where kernels run for
// microseconds.
//
// A thread of such a kernel calls one of the two waits below before it reads or writes anything but
// what is named below. The wait returns once the previous kernel has ended and its writes are
// visible. If that kernel was launched this way too, it ended after its own wait; if not, it
// started after all earlier work. So when the wait returns, all earlier work in the stream is done,
// and the kernel may read or overwrite anything. A kernel in which no thread waits would break this
// for later kernels.
//
// Most kernels let the next one start before their own wait, so several may be resident. None
// can keep another from running: the next kernel's blocks start once all of this kernel's blocks
// have started, and blocks that wait hold registers and shared memory but no progress of earlier
// kernels depends on those.
//
// Weights may be read before the wait, since no kernel launched this way writes them. So may the
// batch and the block tables: only the kernels of prepareInputs write them in a step, and these do
// not let the next kernel start before they have ended. For the same reason so may the keys and
// values of earlier steps.
//
// All kernels ask for the same division of a multiprocessor's memory, with as much shared memory as
// there is: blocks of kernels that ask for different divisions cannot be resident together.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace uniproc::cuda {

// Lets the next kernel's blocks become resident once all blocks of this kernel have called it.
__device__ inline void letNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Waits for the previous kernel. Without letNextStart, the next kernel starts when this one ends.
__device__ inline void waitForPreviousAlone() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

__device__ inline void waitForPrevious() {
  letNextStart();
  waitForPreviousAlone();
}

// launch.cu: whether the kernels as run on this thread's device contain the wait; kernels compiled
// for earlier GPUs do not.
bool kernelsWait();

// launch.cu: bytes of shared memory that a block on this thread's device can have: 227 KiB on
// Hopper, 163 on an A100, 99 on GPUs of compute capability 8.6, 8.9 and 12.x.
size_t maxSharedBytes();

// kernel<<<grid, threads, sharedBytes, stream>>>(arguments...), for a kernel that waits for the
// previous one, in clusters of `clusterSize` blocks along x (Hopper and later; 1: no clusters).
// Check cudaGetLastError after it.
template <class... Parameters, class... Arguments>
void launchClusters(void (*kernel)(Parameters...), dim3 grid, unsigned clusterSize,
                    unsigned threads, size_t sharedBytes, cudaStream_t stream,
                    Arguments&&... arguments) {
  cudaLaunchAttribute attributes[3]{};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  if (kernelsWait()) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    config.numAttrs = 2;
  }
  if (clusterSize > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {clusterSize, 1, 1};
  }
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// The same without clusters.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t sharedBytes,
            cudaStream_t stream, Arguments&&... arguments) {
  launchClusters(kernel, grid, 1, threads, sharedBytes, stream,
                 std::forward<Arguments>(arguments)...);
}

}  // namespace uniproc::cuda
