// What the NVIDIA driver (libcuda.so.1) shows to this process, asked without the CUDA runtime and
// without opening a device.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace uniproc {

// Why CUDA cannot be used, and a command or another action that changes it.
struct CudaProblem {
  std::string reason;
  std::string remedy;
};

struct CudaDevice {
  std::string name;
  size_t totalMemory = 0;  // bytes
  int major = 0;           // compute capability; 0: unknown
  int minor = 0;
  std::vector<bool> canAccess;  // by device: whether this one can read that one's memory
};

struct CudaDriver {
  int version = 0;  // the latest CUDA version that it supports, 13000 for 13.0; 0: no driver
  std::vector<CudaDevice> devices;  // those that CUDA_VISIBLE_DEVICES shows
  // Why there are no devices.
  std::optional<CudaProblem> problem;
  // Whether there is a GPU for this process: at least one device, or a driver that fails for
  // another reason than that there is none.
  bool hasGpu = false;
};

// Whether the driver's library is installed.
bool hasCudaDriver();

// Initialises the driver; takes up to some seconds on a machine with many GPUs.
CudaDriver readCudaDriver();

// '13.0' for 13000.
std::string cudaVersionText(int version);

}  // namespace uniproc
