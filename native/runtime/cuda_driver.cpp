#include "runtime/cuda_driver.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <string_view>
#include <type_traits>

#include "base/cuda_libraries.h"

namespace uniproc {
namespace {

// Results and attributes of cuda.h.
constexpr int kSuccess = 0;
constexpr int kStubLibrary = 34;
constexpr int kNoDevice = 100;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;

// The driver's interface that is used; a function that it lacks is null.
struct Interface {
  int (*init)(unsigned flags);
  int (*driverGetVersion)(int* version);
  int (*deviceGetCount)(int* count);
  int (*deviceGet)(int* device, int index);
  int (*deviceGetName)(char* name, int size, int device);
  int (*deviceTotalMem)(size_t* bytes, int device);
  int (*deviceGetAttribute)(int* value, int attribute, int device);
  int (*deviceCanAccessPeer)(int* canAccess, int device, int peer);
  int (*getErrorName)(int result, const char** name);
};

void* openDriver() { return dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); }

Interface interfaceOf(void* handle) {
  const auto find = [handle](auto*& function, const char* name) {
    using Function = std::remove_reference_t<decltype(function)>;
    function = reinterpret_cast<Function>(dlsym(handle, name));
  };
  Interface driver = {};
  find(driver.init, "cuInit");
  find(driver.driverGetVersion, "cuDriverGetVersion");
  find(driver.deviceGetCount, "cuDeviceGetCount");
  find(driver.deviceGet, "cuDeviceGet");
  find(driver.deviceGetName, "cuDeviceGetName");
  find(driver.deviceTotalMem, "cuDeviceTotalMem_v2");
  find(driver.deviceGetAttribute, "cuDeviceGetAttribute");
  find(driver.deviceCanAccessPeer, "cuDeviceCanAccessPeer");
  find(driver.getErrorName, "cuGetErrorName");
  return driver;
}

// Whether CUDA_VISIBLE_DEVICES hides every device: it ends at the first entry without one.
bool hidesAllDevices(const char* visible) {
  const std::string_view value = visible ? visible : "0";
  return value.empty() || value.starts_with("-1");
}

// Of the distributions, Ubuntu alone has a command that chooses the driver.
std::string installDriver() {
  const std::string install = findProgram("ubuntu-drivers").empty()
                                  ? "install it from https://www.nvidia.com/drivers"
                                  : "run sudo ubuntu-drivers install";
  return install + ", or in a container start it with docker run --gpus all";
}

CudaProblem noDevice(const char* visible) {
  if (!visible) {
    return {
        "the NVIDIA driver shows no GPU",
        "run nvidia-smi, which should list it, or start a container with docker run --gpus all"};
  }
  return {std::string("the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is '") + visible + "')",
          "unset CUDA_VISIBLE_DEVICES"};
}

CudaProblem failed(const Interface& driver, const char* call, int result) {
  const char* name = nullptr;
  if (driver.getErrorName) static_cast<void>(driver.getErrorName(result, &name));
  return {std::string("the NVIDIA driver fails: ") + call + " returns " +
              (name ? name : "an error") + " (" + std::to_string(result) + ")",
          "run nvidia-smi, which names the cause, and reload the driver or restart the machine"};
}

CudaDevice readDevice(const Interface& driver, int index, int count) {
  CudaDevice read;
  const auto deviceOf = [&](int each) {
    int device = each;
    if (driver.deviceGet) static_cast<void>(driver.deviceGet(&device, each));
    return device;
  };
  const int device = deviceOf(index);
  std::array<char, 256> name = {};
  if (driver.deviceGetName && driver.deviceGetName(name.data(), 255, device) == kSuccess) {
    read.name = name.data();
  }
  if (driver.deviceTotalMem) static_cast<void>(driver.deviceTotalMem(&read.totalMemory, device));
  if (driver.deviceGetAttribute) {
    static_cast<void>(driver.deviceGetAttribute(&read.major, kCapabilityMajor, device));
    static_cast<void>(driver.deviceGetAttribute(&read.minor, kCapabilityMinor, device));
  }
  for (int other = 0; other < count; ++other) {
    int canAccess = 0;
    if (driver.deviceCanAccessPeer && other != index) {
      static_cast<void>(driver.deviceCanAccessPeer(&canAccess, device, deviceOf(other)));
    }
    read.canAccess.push_back(canAccess != 0);
  }
  return read;
}

}  // namespace

std::string cudaVersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

bool hasCudaDriver() { return openDriver() != nullptr; }

CudaDriver readCudaDriver() {
  CudaDriver read;
  void* handle = openDriver();
  if (!handle) {
    const std::string error = loaderError();
    read.problem = {"there is no NVIDIA driver (" + error + ")", installDriver()};
    return read;
  }
  const Interface driver = interfaceOf(handle);
  if (driver.driverGetVersion) static_cast<void>(driver.driverGetVersion(&read.version));
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (hidesAllDevices(visible)) {
    read.problem = noDevice(visible);
    return read;
  }
  int count = 0;
  const char* call = "cuInit";
  int result = driver.init ? driver.init(0) : kStubLibrary;
  if (result == kSuccess) {
    call = "cuDeviceGetCount";
    result = driver.deviceGetCount ? driver.deviceGetCount(&count) : kStubLibrary;
  }
  if (result == kNoDevice || (result == kSuccess && count == 0)) {
    read.problem = noDevice(visible);
  } else if (result != kSuccess) {
    read.problem = failed(driver, call, result);
    read.hasGpu = result != kStubLibrary;
  } else {
    read.hasGpu = true;
    for (int i = 0; i < count; ++i) read.devices.push_back(readDevice(driver, i, count));
  }
  return read;
}

}  // namespace uniproc
