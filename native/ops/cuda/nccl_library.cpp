#include "ops/cuda/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "base/cuda_libraries.h"
#include "base/error.h"

namespace uniproc::cuda::nccl {
namespace {

constexpr int kMinVersion = 21800;
// The package has the major version of the CUDA runtime.
constexpr const char* kNcclPackage =
    CUDART_VERSION < 13000 ? "nvidia-nccl-cu12" : "nvidia-nccl-cu13";

[[noreturn]] void throwFailed(const std::string& message) {
  throw Error("COMMUNICATOR_FAILED", message);
}

// Disables NVLink multicast (NVLS), which NCCL would use on an NVSwitch: a fault in it can affect
// other users of the switch. NCCL only reads this from the environment, once. A value set by the
// user is kept.
void disableMulticast() { static_cast<void>(setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0)); }

CudaLibrary open() {
  const CudaLibrary opened = loadNccl();
  if (opened.handle) return opened;
  const char* variable = std::getenv("UNIPROC_NCCL_LIBRARY");
  const bool named = variable && *variable;
  throwFailed(
      "cannot load NCCL, which is required for several GPUs: " +
      (opened.problem.empty() ? "libnccl.so.2 is not in " + cudaLibraryPlaces() : opened.problem) +
      (named ? "; correct the path in UNIPROC_NCCL_LIBRARY"
             : "; run " + pipInstall(kNcclPackage) +
                   ", or set the path of NCCL 2.18 or later in UNIPROC_NCCL_LIBRARY"));
}

Library load() {
  disableMulticast();
  const auto [handle, file, problem] = open();

  const auto find = [handle = handle, &file = file](auto*& function, const char* name) {
    using Function = std::remove_reference_t<decltype(function)>;
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (!function) throwFailed(file + " is not a usable NCCL library: it has no function " + name);
  };
  Library library;
  find(library.getVersion, "ncclGetVersion");
  if (library.getVersion(&library.version) != kSuccess || library.version < kMinVersion ||
      library.version >= 30000) {
    throwFailed(file + " is NCCL " + versionText(library.version) + "; version " +
                versionText(kMinVersion) + " or a later 2.x is required");
  }
  find(library.getUniqueId, "ncclGetUniqueId");
  find(library.commInitRankConfig, "ncclCommInitRankConfig");
  find(library.commGetAsyncError, "ncclCommGetAsyncError");
  find(library.commAbort, "ncclCommAbort");
  find(library.allReduce, "ncclAllReduce");
  find(library.allGather, "ncclAllGather");
  find(library.broadcast, "ncclBroadcast");
  find(library.getErrorString, "ncclGetErrorString");
  find(library.getLastError, "ncclGetLastError");
  return library;
}

}  // namespace

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

std::string describe(Result result, Comm comm) {
  std::string text = library().getErrorString(result);
  const char* last = library().getLastError(comm);
  if (last && *last) text += std::string("; ") + last;
  return text;
}

std::string versionText(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace uniproc::cuda::nccl
