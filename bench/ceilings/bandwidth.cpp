#include "ceilings/bandwidth.h"

#include <cstddef>
#include <cstring>

#include "ceilings/device.h"
#include "ceilings/kernels.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::ceilings {

using cuda::check;

namespace {

constexpr Effort kEffort = {7, 0.01};
constexpr size_t kReadBytes = size_t{8} << 30;  // far larger than any cache
constexpr size_t kCopyBytes = size_t{256} << 20;

}  // namespace

double readBandwidth(cudaStream_t stream) {
  int device = 0;
  int numMultiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&numMultiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  const DeviceMemory data(kReadBytes);
  const DeviceMemory sink(16);
  fillRandom(data.data(), kReadBytes / 2, 1.0f, 1, stream);
  return kReadBytes / secondsOf(stream, kEffort, [&] {
           readAll(data.data(), kReadBytes, sink.data(), numMultiprocessors, stream);
         });
}

double copyBandwidth(cudaStream_t stream) {
  const PinnedMemory host(kCopyBytes);
  std::memset(host.data(), 0x5a, kCopyBytes);
  const DeviceMemory device(kCopyBytes);
  return kCopyBytes / secondsOf(stream, kEffort, [&] {
           check(cudaMemcpyAsync(device.data(), host.data(), kCopyBytes, cudaMemcpyHostToDevice,
                                 stream),
                 "cudaMemcpyAsync");
         });
}

}  // namespace uniproc::ceilings
