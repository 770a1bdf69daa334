#include "ops/cuda/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <type_traits>

#include "base/error.h"

namespace uniproc::cuda::nccl {
namespace {

constexpr int kOldest = 21800;

[[noreturn]] void throwFailed(const std::string& message) {
  throw Error("COMMUNICATOR_FAILED", message);
}

// NVLink multicast (NVLS), which NCCL would use on an NVSwitch, is left alone: what goes wrong with
// it can take the other users of the switch along. There is no place for that in NCCL's
// configuration but the environment, which it reads once; who has set the variable is left his way.
void leaveMulticastOff() { static_cast<void>(setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0)); }

void* open(const char* named, const std::string& file) {
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle) return handle;
  const char* reason = dlerror();
  throwFailed(
      "NCCL, which several GPUs need, cannot be loaded: " + std::string(reason ? reason : file) +
      (named ? "; UNIPROC_NCCL_LIBRARY names that file"
             : "; libnccl.so.2 was looked for where the loader looks. Install NCCL 2.18 "
               "or later for this CUDA, or name its file in UNIPROC_NCCL_LIBRARY"));
}

Library load() {
  leaveMulticastOff();
  const char* named = std::getenv("UNIPROC_NCCL_LIBRARY");
  const std::string file = named ? named : "libnccl.so.2";
  void* handle = open(named, file);

  const auto find = [&](auto*& function, const char* name) {
    using Function = std::remove_reference_t<decltype(function)>;
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (!function) throwFailed(file + " is no NCCL that can be used: it has no " + name);
  };
  Library library;
  find(library.getVersion, "ncclGetVersion");
  if (library.getVersion(&library.version) != kSuccess || library.version < kOldest ||
      library.version >= 30000) {
    throwFailed(file + " is NCCL " + versionText(library.version) + "; a 2 from " +
                versionText(kOldest) + " on is needed");
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
