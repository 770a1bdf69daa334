// How the kernels of the forward pass are launched: each while the one before it ends.
//
// On Hopper and later a kernel's blocks may take their places while the kernel before it in the
// stream is at its end, and wait there, so that most of a launch's time is hidden (programmatic
// dependent launch; graphs keep it). In a decode step whose kernels run for microseconds that is a
// part worth having.
//
// Such a kernel waits in every thread, by one of the two functions below, before it reads or writes
// what others do: the wait returns once the kernel before it has ended and its writes can be seen.
// If that one was launched this way too, it ended after its own wait, and if not, after all that
// was before it; so when the wait returns, all that is before it in the stream is done, and
// whatever the kernel reads or overwrites is safe. A kernel whose blocks all returned without
// waiting would break that for the kernels behind it.
//
// Weights may be read before the wait, since no kernel launched this way writes them, and so may
// the batch and the block tables: of a step's kernels only those of prepareInputs write them, and
// these do not let the next one come before they have ended.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace uniproc::cuda {

// The next kernel's blocks come when this one has ended: they would take from the bandwidth of one
// that needs all of it.
__device__ inline void waitForPreviousAlone() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Lets the next kernel's blocks come, too: they find places as this one's become free.
__device__ inline void waitForPrevious() {
  waitForPreviousAlone();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// launch.cu: whether the kernels as they run on this thread's device have that wait in them: those
// compiled for earlier GPUs have not, wherever they run.
bool kernelsWait();

// kernel<<<grid, threads, sharedBytes, stream>>>(arguments...) of a kernel that waits for the one
// before it. As there, cudaGetLastError tells whether it was launched.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t sharedBytes,
            cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = kernelsWait() ? 1 : 0;
  static_cast<void>(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

}  // namespace uniproc::cuda
