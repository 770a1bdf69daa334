#include "ops/cuda/open_device.h"

#include <cstdlib>
#include <string>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {
namespace {

constexpr int kMinMajor = 8;

[[noreturn]] void throwFailed(const std::string& message) { throw Error("DEVICE_FAILED", message); }

// '13.0' for 13000.
std::string versionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void requireDriver(const std::string& device) {
  int version = 0;
  check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  if (version == 0) throwFailed("no NVIDIA driver (libcuda.so.1) is installed to run " + device);
  constexpr int kRequiredVersion = CUDART_VERSION / 1000 * 1000;  // the runtime's major version
  if (version < kRequiredVersion) {
    throwFailed("the NVIDIA driver supports CUDA up to " + versionText(version) +
                "; this build requires a driver for CUDA " + versionText(kRequiredVersion) +
                " or later");
  }
}

int countDevices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  check(status, "cudaGetDeviceCount");
  return count;
}

}  // namespace

cudaDeviceProp openDevice(int index) {
  const std::string device = "cuda:" + std::to_string(index);
  requireDriver(device);
  const int count = countDevices();
  if (index < 0 || index >= count) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    throwFailed("there is no " + device + "; the driver shows " + std::to_string(count) +
                (count == 1 ? " device" : " devices") +
                (visible ? std::string(" (CUDA_VISIBLE_DEVICES is '") + visible + "')" : ""));
  }
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  if (properties.major < kMinMajor) {
    throwFailed(device + ", " + properties.name + ", has compute capability " +
                std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                "; at least " + std::to_string(kMinMajor) + ".0 is required");
  }
  check(cudaSetDevice(index), "cudaSetDevice");
  return properties;
}

}  // namespace uniproc::cuda
