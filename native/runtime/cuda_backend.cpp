#include "runtime/cuda_backend.h"

#include <dlfcn.h>
#include <unistd.h>

#include <string>

#include "base/error.h"

namespace uniproc {
namespace {

[[noreturn]] void throwFailed(const std::string& message) { throw Error("DEVICE_FAILED", message); }

// Beside the addon, which this function is part of.
std::string backendFile() {
  Dl_info addon = {};
  if (dladdr(reinterpret_cast<void*>(&backendFile), &addon) == 0) {
    throwFailed("the addon's own file, which the CUDA backend stands beside, is not known");
  }
  const std::string file = addon.dli_fname;
  return file.substr(0, file.rfind('/') + 1) + "uniproc_cuda.so";
}

}  // namespace

std::unique_ptr<Ops> openCudaBackend(int index) {
  const std::string file = backendFile();
  if (access(file.c_str(), F_OK) != 0) {
    throwFailed("there is no CUDA backend, " + file +
                ", in this build; npm run build makes it where CMake finds a CUDA toolkit (nvcc) "
                "and cuBLASLt");
  }
  // Never closed: the errors it throws and the objects it makes are made of its code.
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char* reason = dlerror();
    throwFailed("the CUDA backend cannot be loaded: " + std::string(reason ? reason : file) +
                "; it needs cuBLASLt, libcublasLt.so.13, where the loader looks for it");
  }
  // Its errors are ours: the exception's type is the same, by name, in both shared objects.
  const auto make = reinterpret_cast<Ops* (*)(int)>(dlsym(library, "uniprocMakeCudaOps"));
  if (!make) throwFailed(file + " does not belong to this build; build both anew");
  return std::unique_ptr<Ops>(make(index));
}

}  // namespace uniproc
