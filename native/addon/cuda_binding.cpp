#include "addon/cuda_binding.h"

#include <dlfcn.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "base/cuda_libraries.h"
#include "runtime/cuda_backend.h"
#include "runtime/cuda_driver.h"

namespace uniproc {
namespace {

// A promise of the result of `Read`, run on a thread of libuv and converted by `ToValue`.
template <auto Read, auto ToValue>
class Reader : public Napi::AsyncWorker {
 public:
  static Napi::Value start(const Napi::CallbackInfo& info) {
    auto reader = std::make_unique<Reader>(info.Env());
    const Napi::Promise promise = reader->deferred_.Promise();
    reader.release()->Queue();  // deletes itself when done
    return promise;
  }

  explicit Reader(Napi::Env env) : AsyncWorker(env), deferred_(env) {}

 private:
  void Execute() override { result_ = Read(); }
  void OnOK() override { deferred_.Resolve(ToValue(Env(), result_)); }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

  Napi::Promise::Deferred deferred_;
  decltype(Read()) result_;
};

Napi::Value textOrNull(Napi::Env env, const std::string& text) {
  if (text.empty()) return env.Null();
  return Napi::String::New(env, text);
}

Napi::Value versionOrNull(Napi::Env env, int version) {
  return textOrNull(env, version == 0 ? "" : cudaVersionText(version));
}

Napi::Value problemOrNull(Napi::Env env, const std::optional<CudaProblem>& problem) {
  if (!problem) return env.Null();
  auto object = Napi::Object::New(env);
  object.Set("reason", problem->reason);
  object.Set("remedy", problem->remedy);
  return object;
}

Napi::Value hasGpuToValue(Napi::Env env, const CudaDriver& driver) {
  return Napi::Boolean::New(env, driver.hasGpu);
}

struct Library {
  std::string file;
  std::string version;
  std::optional<CudaProblem> problem;
};

struct Cuda {
  CudaDriver driver;
  CudaBackend backend;
  Library cublasLt;
  Library nccl;
};

// '13.1.1' for 130101, as cuBLASLt and NCCL number their versions.
std::string versionText(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Library missing(const std::string& name, const CudaLibrary& library, const std::string& package) {
  const std::string reason = library.problem.empty() ? name + " is not found" : library.problem;
  return {"", "", CudaProblem{reason, "run " + pipInstall(package)}};
}

// The cuBLASLt that the backend requires; without a backend the latest.
Library readCublasLt(const CudaBackend& backend) {
  constexpr const char* kFunction = "cublasLtGetVersion";
  const std::string wanted =
      backend.cublasLt.empty() ? std::string("libcublasLt.so.13") : backend.cublasLt;
  CudaLibrary found = loadCudaLibrary(wanted, kFunction);
  if (!found.handle && backend.cublasLt.empty()) {
    found = loadCudaLibrary("libcublasLt.so.12", kFunction);
  }
  if (!found.handle) return missing(wanted, found, cublasLtPackage(wanted));
  const auto version = reinterpret_cast<size_t (*)()>(dlsym(found.handle, kFunction));
  return {found.file, versionText(static_cast<int>(version())), std::nullopt};
}

Library readNccl(const CudaBackend& backend) {
  const CudaLibrary found = loadNccl();
  const bool isCuda12 = backend.runtimeVersion != 0 && backend.runtimeVersion < 13000;
  if (!found.handle) {
    return missing("libnccl.so.2, which only several GPUs require,", found,
                   isCuda12 ? "nvidia-nccl-cu12" : "nvidia-nccl-cu13");
  }
  const auto getVersion = reinterpret_cast<int (*)(int*)>(dlsym(found.handle, "ncclGetVersion"));
  int version = 0;
  getVersion(&version);
  return {found.file, versionText(version), std::nullopt};
}

Cuda readCuda() {
  Cuda cuda;
  cuda.driver = readCudaDriver();
  cuda.backend = loadCudaBackend();
  cuda.cublasLt = readCublasLt(cuda.backend);
  cuda.nccl = readNccl(cuda.backend);
  return cuda;
}

Napi::Value devicesToValue(Napi::Env env, const Cuda& cuda) {
  auto devices = Napi::Array::New(env);
  for (const CudaDevice& device : cuda.driver.devices) {
    const int index = static_cast<int>(devices.Length());
    auto canAccess = Napi::Array::New(env);
    for (const bool can : device.canAccess) {
      canAccess.Set(canAccess.Length(), Napi::Boolean::New(env, can));
    }
    auto object = Napi::Object::New(env);
    object.Set("name", device.name);
    object.Set("totalMemory", static_cast<double>(device.totalMemory));
    object.Set("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
    object.Set("canAccess", canAccess);
    object.Set("problem", problemOrNull(env, problemOfDevice(cuda.driver, cuda.backend, index)));
    devices.Set(devices.Length(), object);
  }
  return devices;
}

Napi::Value driverToValue(Napi::Env env, const CudaDriver& driver) {
  auto object = Napi::Object::New(env);
  object.Set("cudaVersion", versionOrNull(env, driver.version));
  object.Set("hasGpu", driver.hasGpu);
  object.Set("problem", problemOrNull(env, driver.problem));
  return object;
}

Napi::Value backendToValue(Napi::Env env, const CudaBackend& backend) {
  auto object = Napi::Object::New(env);
  object.Set("file", backend.file);
  object.Set("cudaVersion", versionOrNull(env, backend.runtimeVersion));
  object.Set("architectures", textOrNull(env, backend.architectures));
  object.Set("problem", problemOrNull(env, backend.problem));
  return object;
}

Napi::Value libraryToValue(Napi::Env env, const Library& library) {
  auto object = Napi::Object::New(env);
  object.Set("file", textOrNull(env, library.file));
  object.Set("version", textOrNull(env, library.version));
  object.Set("problem", problemOrNull(env, library.problem));
  return object;
}

Napi::Value cudaToValue(Napi::Env env, const Cuda& cuda) {
  auto object = Napi::Object::New(env);
  object.Set("driver", driverToValue(env, cuda.driver));
  object.Set("devices", devicesToValue(env, cuda));
  object.Set("backend", backendToValue(env, cuda.backend));
  object.Set("cublasLt", libraryToValue(env, cuda.cublasLt));
  object.Set("nccl", libraryToValue(env, cuda.nccl));
  return object;
}

// Whether this is the first call in the process: each of its threads has JavaScript of its own.
Napi::Value isFirstGpuWarning(const Napi::CallbackInfo& info) {
  static std::atomic<bool> warned{false};
  return Napi::Boolean::New(info.Env(), !warned.exchange(true));
}

Napi::Object buildInfo(Napi::Env env) {
  auto object = Napi::Object::New(env);
  object.Set("file", fileOfFunction(reinterpret_cast<void*>(&defineCuda)));
#ifdef __clang__
  object.Set("compiler", "Clang " __clang_version__);
#else
  object.Set("compiler", "GCC " __VERSION__);
#endif
  return object;
}

}  // namespace

void defineCuda(Napi::Env env, Napi::Object exports) {
  exports.Set("buildInfo", buildInfo(env));
  exports.Set("hasGpu",
              Napi::Function::New<&Reader<&readCudaDriver, &hasGpuToValue>::start>(env, "hasGpu"));
  exports.Set("isFirstGpuWarning",
              Napi::Function::New<isFirstGpuWarning>(env, "isFirstGpuWarning"));
  exports.Set("readCuda",
              Napi::Function::New<&Reader<&readCuda, &cudaToValue>::start>(env, "readCuda"));
}

}  // namespace uniproc
