#include "runtime/cuda_backend.h"

#include <dlfcn.h>
#include <unistd.h>

#include <mutex>
#include <string>
#include <utility>

#include "base/error.h"

namespace uniproc {
namespace {

[[noreturn]] void throwFailed(const std::string& message) { throw Error("DEVICE_FAILED", message); }

// Set by JavaScript threads, read by the threads of devices.
std::mutex fileMutex;
std::string configuredFile;

// Unless set, in the directory of the addon, found through this function's address.
std::string backendFile() {
  {
    const std::lock_guard lock(fileMutex);
    if (!configuredFile.empty()) return configuredFile;
  }
  Dl_info addon = {};
  if (dladdr(reinterpret_cast<void*>(&backendFile), &addon) == 0) {
    throwFailed("cannot locate the addon's file, next to which the CUDA backend is installed");
  }
  const std::string file = addon.dli_fname;
  return file.substr(0, file.rfind('/') + 1) + "uniproc_cuda.so";
}

}  // namespace

void setCudaBackendFile(std::string file) {
  const std::lock_guard lock(fileMutex);
  configuredFile = std::move(file);
}

std::unique_ptr<Ops> openCudaBackend(int index) {
  const std::string file = backendFile();
  if (access(file.c_str(), F_OK) != 0) {
    throwFailed("this build has no CUDA backend (" + file +
                " is missing); install a CUDA toolkit (nvcc) and cuBLASLt, then "
                "run npm run build");
  }
  // Never closed, because its code handles the errors and objects that it creates.
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char* reason = dlerror();
    throwFailed("cannot load the CUDA backend: " + std::string(reason ? reason : file) +
                "; it requires cuBLASLt (libcublasLt.so.13) in the loader's search path");
  }
  // Its exceptions can be caught here: the type has the same name in both shared objects.
  const auto make = reinterpret_cast<Ops* (*)(int)>(dlsym(library, "uniprocMakeCudaOps"));
  if (!make) throwFailed(file + " does not match the addon; rebuild both with npm run build");
  return std::unique_ptr<Ops>(make(index));
}

}  // namespace uniproc
