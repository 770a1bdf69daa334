#include "runtime/cuda_backend.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <future>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/cuda_libraries.h"
#include "base/error.h"

namespace uniproc {
namespace {

constexpr int kMinMajor = 8;
constexpr const char* kCublasLt = "libcublasLt.so";
constexpr const char* kCublasLtFunction = "cublasLtGetVersion";

// Set by JavaScript threads, read by the threads of devices.
std::mutex fileMutex;
std::string configuredFile;

std::string addonFile() { return fileOfFunction(reinterpret_cast<void*>(&addonFile)); }

// Unless set, in the directory of the addon.
std::string backendFile() {
  {
    const std::lock_guard lock(fileMutex);
    if (!configuredFile.empty()) return configuredFile;
  }
  const std::string addon = addonFile();
  return addon.substr(0, addon.rfind('/') + 1) + "uniproc_cuda.so";
}

bool isInApplication() { return addonFile().find("/node_modules/") != std::string::npos; }

// Whether the addon and the backend come from platform packages, as scripts/prebuild.js makes them.
bool isPrebuilt() { return addonFile().find("/node_modules/@uniproc/") != std::string::npos; }

#if defined(__x86_64__)
constexpr bool kHasPackage = true;  // @uniproc/linux-x64-cuda
#else
constexpr bool kHasPackage = false;
#endif

// Whether an addon built on this machine has the glibc that the platform packages require.
#if defined(__GLIBC__) && (__GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 34))
constexpr bool kHasGlibc = true;
#else
constexpr bool kHasGlibc = false;
#endif

constexpr const char* kInstall = "npm install --include=optional";

// The command that builds this package again: in an application, or in a clone.
std::string rebuildCommand() {
  return isInApplication() ? "npm rebuild uniproc --build-from-source" : "npm run build";
}

// What replaces a backend that cannot be loaded.
std::string renewal(const std::string& file) {
  if (!isPrebuilt()) return "run " + rebuildCommand();
  return "delete " + file.substr(0, file.rfind('/')) + " and run " + kInstall;
}

std::vector<std::string> filesOfCublasLt() {
  std::vector<std::string> files = cudaLibraryFiles(kCublasLt, true);
  const std::vector<std::string> others = cudaLibraryFiles(kCublasLt, false);
  files.insert(files.end(), others.begin(), others.end());
  return files;
}

CudaProblem notBuilt(const std::string& file) {
  const std::string reason = "this build has no CUDA backend (" + file + " is missing)";
  if (isPrebuilt() && kHasPackage) {
    return {reason, std::string("run ") + kInstall + ", which adds @uniproc/linux-x64-cuda"};
  }
  std::string install;
  if (isInApplication() && kHasPackage && kHasGlibc) {
    const std::string release = file.substr(0, file.rfind('/'));
    install = "run rm -r '" + release.substr(0, release.rfind('/')) + "' && " + kInstall +
              ", which takes the prebuilt one, or ";
  }
  std::string first;
  if (findProgram("cmake").empty()) first += pipInstall("cmake") + " && ";
  if (findNvcc().empty()) {
    return {reason, install +
                        "install a CUDA toolkit of version 12 or later "
                        "(https://developer.nvidia.com/cuda-downloads), then run " +
                        first + rebuildCommand()};
  }
  if (filesOfCublasLt().empty()) first += pipInstall("nvidia-cublas") + " && ";
  return {reason, install + "run " + first + rebuildCommand()};
}

// Versions of cuBLASLt other than the wanted, as a text; empty: none. Those of the loader's path
// are known by their names alone.
std::string otherVersions(const std::string& wanted) {
  std::vector<std::string> files = filesOfCublasLt();
  for (int version = 10; version < 20; ++version) {
    const std::string name = std::string(kCublasLt) + "." + std::to_string(version);
    void* handle = name == wanted ? nullptr : dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (!handle) continue;
    const void* function = dlsym(handle, kCublasLtFunction);
    files.push_back(function ? fileOfFunction(function) : name);
    dlclose(handle);
  }
  std::string text;
  for (const std::string& file : files) {
    if (file.ends_with("/" + wanted) || text.find(file) != std::string::npos) continue;
    text += (text.empty() ? "" : ", ") + file;
  }
  return text;
}

// The first cuBLASLt in the loader's error, 'libcublasLt.so.13'; empty: the error is about another
// file.
std::string cublasLtIn(const std::string& error) {
  constexpr std::string_view kStem = "libcublasLt.so.";
  const size_t start = error.find(kStem);
  if (start == std::string::npos) return "";
  const size_t end = error.find_first_not_of("0123456789", start + kStem.size());
  return error.substr(start, end - start);
}

void* openFile(const std::string& file) {
  // Never closed, because its code handles the errors and objects that it creates.
  return dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

// Opens the backend with the cuBLASLt that it was linked with, 'libcublasLt.so.13': the loader
// takes one that is already loaded by its soname, from whichever file. Null: sets the problem.
void* openWithCublasLt(CudaBackend& backend) {
  for (const std::string& named : cudaLibraryFiles(kCublasLt, true)) {
    static_cast<void>(dlopen(named.c_str(), RTLD_NOW | RTLD_LOCAL));
  }
  if (void* handle = openFile(backend.file)) return handle;
  const std::string error = loaderError();
  backend.cublasLt = cublasLtIn(error);
  if (backend.cublasLt.empty()) {
    backend.problem = {"the CUDA backend cannot be loaded: " + error, renewal(backend.file)};
    return nullptr;
  }
  void* handle = nullptr;
  const auto reject = [&]() -> std::string {
    handle = openFile(backend.file);
    return handle ? "" : loaderError();
  };
  const CudaLibrary library = loadCudaLibrary(backend.cublasLt, kCublasLtFunction, reject);
  if (handle) return handle;
  const std::string others = otherVersions(backend.cublasLt);
  std::string found = library.problem;
  if (found.empty() && others.empty()) found = "it is not in " + cudaLibraryPlaces();
  if (!others.empty()) {
    found += (found.empty() ? "there is another version: " : ", and another version: ") + others;
  }
  backend.problem = {"the CUDA backend requires cuBLASLt as " + backend.cublasLt + "; " + found,
                     "run " + pipInstall(cublasLtPackage(backend.cublasLt))};
  return nullptr;
}

template <typename T>
T* find(void* handle, const char* name) {
  return reinterpret_cast<T*>(dlsym(handle, name));
}

}  // namespace

void setCudaBackendFile(std::string file) {
  const std::lock_guard lock(fileMutex);
  configuredFile = std::move(file);
}

std::string cublasLtPackage(const std::string& name) {
  const std::string version = name.substr(name.rfind('.') + 1);
  return version == "11" || version == "12" ? "nvidia-cublas-cu" + version
                                            : "'nvidia-cublas==" + version + ".*'";
}

CudaBackend loadCudaBackend() {
  CudaBackend backend;
  backend.file = backendFile();
  if (access(backend.file.c_str(), F_OK) != 0) {
    backend.problem = notBuilt(backend.file);
    return backend;
  }
  void* handle = openWithCublasLt(backend);
  if (!handle) return backend;
  // Its exceptions can be caught here: the type has the same name in both shared objects.
  backend.make = find<Ops*(int)>(handle, "uniprocMakeCudaOps");
  const int* version = find<const int>(handle, "uniprocCudaRuntimeVersion");
  const char* architectures = find<const char>(handle, "uniprocCudaArchitectures");
  if (!backend.make || !version || !architectures) {
    backend.problem = {backend.file + " does not match the addon", renewal(backend.file)};
    return backend;
  }
  backend.runtimeVersion = *version;
  backend.architectures = architectures;
  const std::string cublasLt = fileOfFunction(dlsym(handle, kCublasLtFunction));
  backend.cublasLt = cublasLt.substr(cublasLt.rfind('/') + 1);
  return backend;
}

std::optional<CudaProblem> problemOfDevice(const CudaDriver& driver, const CudaBackend& backend,
                                           int index) {
  if (driver.problem) return driver.problem;
  const std::string name = "cuda:" + std::to_string(index);
  const int count = static_cast<int>(driver.devices.size());
  if (index < 0 || index >= count) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return CudaProblem{
        "there is no " + name + ": the NVIDIA driver shows " + std::to_string(count) +
            (count == 1 ? " GPU" : " GPUs") +
            (visible ? std::string(" (CUDA_VISIBLE_DEVICES is '") + visible + "')" : ""),
        "use a number below " + std::to_string(count)};
  }
  const CudaDevice& device = driver.devices[static_cast<size_t>(index)];
  if (device.major != 0 && device.major < kMinMajor) {
    return CudaProblem{name + ", " + device.name + ", has compute capability " +
                           std::to_string(device.major) + "." + std::to_string(device.minor) +
                           "; at least " + std::to_string(kMinMajor) + ".0 is required",
                       "use another GPU, or hide this one with CUDA_VISIBLE_DEVICES"};
  }
  if (backend.problem) return backend.problem;
  const int required = backend.runtimeVersion / 1000 * 1000;  // the runtime's major version
  if (driver.version < required) {
    return CudaProblem{"the NVIDIA driver supports CUDA up to " + cudaVersionText(driver.version) +
                           "; this build requires a driver for CUDA " + cudaVersionText(required) +
                           " or later",
                       "update the driver (https://www.nvidia.com/drivers)"};
  }
  return std::nullopt;
}

std::unique_ptr<Ops> openCudaBackend(int index) {
  // cuInit and loading cuBLASLt, of hundreds of megabytes, each take about 0.1 s: at once. Without
  // a driver, the backend's libraries are not loaded.
  std::future<CudaBackend> loading;
  if (hasCudaDriver()) loading = std::async(std::launch::async, loadCudaBackend);
  const CudaDriver driver = readCudaDriver();
  const CudaBackend backend = loading.valid() ? loading.get() : CudaBackend();
  if (const auto problem = problemOfDevice(driver, backend, index)) {
    throw Error("CUDA_UNAVAILABLE", problem->reason + "; " + problem->remedy);
  }
  try {
    return std::unique_ptr<Ops>(backend.make(index));
  } catch (const Error& error) {
    if (error.code() != "DEVICE_FAILED") throw;
    throw Error("CUDA_UNAVAILABLE", "cuda:" + std::to_string(index) + " cannot be opened: " +
                                        error.what() + "; run nvidia-smi, which shows its state");
  }
}

}  // namespace uniproc
