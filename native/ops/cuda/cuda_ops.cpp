#include "ops/cuda/cuda_ops.h"

#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/expert_mlps.h"
#include "ops/cuda/graphs.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/linear.h"
#include "ops/cuda/memory.h"
#include "ops/cuda/nccl_communicator.h"
#include "ops/cuda/staging.h"
#include "ops/cuda/steps.h"
#include "ops/cuda/transfer.h"

namespace uniproc {
namespace cuda {
namespace {

class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~Stream() {
    static_cast<void>(cudaStreamSynchronize(stream_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Makes device `index` the calling thread's current device.
cudaDeviceProp openDevice(int index) {
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  cuda::check(cudaSetDevice(index), "cudaSetDevice");
  return properties;
}

// All operations run asynchronously on one stream, so a later call reports a kernel's failure; the
// error names the last operation launched before it.
class CudaOps final : public Ops {
 public:
  explicit CudaOps(int index)
      : device_(index),
        properties_(openDevice(index)),
        steps_(index, stream_),
        staging_(stream_),
        memory_(stream_),
        scratch_(memory_),
        attentionScratch_(memory_),
        samplerCounters_(memory_),
        linear_(stream_, memory_, properties_.multiProcessorCount),
        expertMlps_(stream_, memory_, properties_.multiProcessorCount) {
    requireKernels();
  }

  // The device -----------------------------------------------------------------------------

  std::string name() const override { return properties_.name; }
  std::string capability() const override {
    return "sm_" + std::to_string(properties_.major) + std::to_string(properties_.minor);
  }
  int numThreads() const override { return 1; }
  DeviceMemory memory() const override { return memory_.usage(); }
  void resetPeakMemory() override { memory_.resetPeak(); }
  void* allocate(size_t bytes, const char* what) override { return memory_.allocate(bytes, what); }
  void release(void* memory, size_t bytes) noexcept override { memory_.release(memory, bytes); }
  void* allocateHost(size_t bytes, const char* what) override {
    return MemoryAccount::allocateHost(bytes, what);
  }
  void releaseHost(void* memory, size_t) noexcept override {
    static_cast<void>(cudaStreamSynchronize(stream_));  // copies may still read it
    MemoryAccount::releaseHost(memory);
  }
  void pin(void* memory, size_t bytes) override {
    check(cudaHostRegister(memory, bytes, cudaHostRegisterDefault), "cudaHostRegister");
  }
  void unpin(void* memory) noexcept override {
    static_cast<void>(cudaStreamSynchronize(stream_));  // copies may still write it
    static_cast<void>(cudaHostUnregister(memory));
  }
  // The driver reads pageable memory before it returns, pinned memory when the copy runs.
  void copyToDevice(void* device, const void* host, size_t bytes) override {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
  }
  // The driver writes pageable memory before it returns, pinned memory when the copy runs.
  void copyToHost(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
  }
  void copyToPinned(void* host, const void* device, size_t bytes) override {
    if (bytes == 0) return;
    cuda::copyToPinned(host, device, bytes, stream_);
    launched("copyToPinned");
  }
  void copyAllToDevice(std::span<const HostToDevice> copies) override {
    staging_.copy(copies);
    launched("copyAllToDevice");
  }
  void synchronize() override {
    if (const auto group = group_.lock()) group->wait(stream_);
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  void beginStep() override { steps_.begin(); }
  // The kernels of a failed group end without a valid result, so check for the failure.
  void endStep(Done done) override {
    if (auto group = group_.lock()) {
      done = [group = std::move(group), done = std::move(done)](std::exception_ptr error) {
        done(error ? error : group->failure());
      };
    }
    steps_.end(lastLaunched_, std::move(done));
  }
  StepTimes stepTimes() const override { return steps_.times(); }
  // Synchronize first, so that the recorded range neither includes earlier operations nor loses its
  // own.
  void startProfiler() override {
    synchronize();
    check(cudaProfilerStart(), "cudaProfilerStart");
  }
  void stopProfiler() override {
    synchronize();
    check(cudaProfilerStop(), "cudaProfilerStop");
  }
  std::string chooseProductAlgorithms(std::string_view known) override {
    return linear_.chooseFastest(known);
  }
  DType activationType(DType weights) const override { return weights; }
  std::unique_ptr<Graphs> makeGraphs() override { return std::make_unique<CudaGraphs>(stream_); }
  std::unique_ptr<Communicator> makeCommunicator(const CommunicatorConfig& config) override {
    auto communicator = std::make_unique<NcclCommunicator>(config, device_, stream_, memory_);
    group_ = communicator->group();
    return communicator;
  }

  void upload(void* out, StorageType outType, const HostMatrix& host) override {
    transfer().upload(out, outType, host);
  }
  void download(void* host, const void* in, int64_t bytes) override {
    transfer().download(host, in, bytes);
  }

  void fillRandom(void* out, StorageType type, int64_t count, float mean, float std,
                  uint64_t seed) override {
    cuda::fillRandom(out, type, count, mean, std, seed, stream_);
    launched("fillRandom");
  }

  // The forward pass -----------------------------------------------------------------------

  void prepareInputs(const HostToDevice& inputs, const RequestTable& requests,
                     const int32_t* blockUpdates, int32_t numBlockUpdates, int32_t blockSize,
                     const Batch& batch) override {
    cuda::prepareInputs(inputs, requests, blockUpdates, numBlockUpdates, blockSize, batch, stream_);
    launched("prepareInputs");
  }

  void embed(const int32_t* tokenIds, int32_t numTokens, const LinearWeight& table,
             int32_t firstToken, void* out) override {
    cuda::embed(tokenIds, numTokens, table.matrix(), firstToken, out, table.dtype, stream_);
    launched("embed");
  }

  void rmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight, float eps,
               void* out) override {
    cuda::rmsNorm(x, residual, numTokens, weight, eps, out, weight.dtype, stream_);
    launched("rmsNorm");
  }

  // `communicator` is one of makeCommunicator's.
  void sumRmsNorm(Communicator& communicator, void* x, void* residual, int32_t numTokens,
                  const Weight& weight, float eps, void* out) override {
    const NormOfSum norm = {residual, weight.data, static_cast<int32_t>(weight.rows), eps, out};
    auto& ranks = static_cast<NcclCommunicator&>(communicator);
    // The kernel knows no offset.
    if (weight.offset == 0.0f && ranks.sumRmsNorm(x, numTokens, norm, weight.dtype)) {
      return launched("sumRmsNorm");
    }
    Ops::sumRmsNorm(communicator, x, residual, numTokens, weight, eps, out);
  }

  void linear(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
              DType outType) override {
    linear_.run(x, numTokens, weight, out, outType);
    launched("linear");
  }

  void linearSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight, void* gateUp,
                        void* out, DType type) override {
    if (!linear_.runSiluAndMul(x, numTokens, weight, out)) {
      return Ops::linearSiluAndMul(x, numTokens, weight, gateUp, out, type);
    }
    launched("linearSiluAndMul");
  }

  void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape, const Weight& qNorm,
                    const Weight& kNorm, float eps, const float* rope,
                    const KvCache& cache) override {
    cuda::ropeAndCache(qkv, batch, shape, qNorm, kNorm, eps, rope, cache, cache.dtype, stream_);
    launched("ropeAndCache");
  }

  void normValues(void* qkv, int32_t numTokens, const AttentionShape& shape, float eps,
                  DType type) override {
    cuda::normValues(qkv, numTokens, shape, eps, type, stream_);
    launched("normValues");
  }

  void scaleBy(void* x, int64_t count, const Weight& factor, DType type) override {
    cuda::scaleBy(x, count, factor, type, stream_);
    launched("scaleBy");
  }

  void scaleQueries(void* qkv, const Batch& batch, const AttentionShape& shape,
                    const Temperature& temperature, DType type) override {
    cuda::scaleQueries(qkv, batch, shape, temperature, type, stream_);
    launched("scaleQueries");
  }

  void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
                 const KvCache& cache, const RequestTable& requests, void* out) override {
    const int numMultiprocessors = properties_.multiProcessorCount;
    void* workspace = attentionScratch_.atLeast(attentionWorkspaceBytes(shape, numMultiprocessors));
    cuda::attention(qkv, batch, shape, cache, requests, out, cache.dtype, workspace,
                    numMultiprocessors, stream_);
    launched("attention");
  }

  void ropeAndAttention(void* qkv, const Batch& batch, const AttentionShape& shape,
                        const Weight& qNorm, const Weight& kNorm, float eps, const float* rope,
                        const KvCache& cache, const RequestTable& requests, void* out) override {
    if (shape.hasKeys &&
        cuda::ropeAndAttention(qkv, batch, shape, qNorm, kNorm, eps, rope, cache, requests, out,
                               cache.dtype, properties_.multiProcessorCount, stream_)) {
      return launched("ropeAndAttention");
    }
    Ops::ropeAndAttention(qkv, batch, shape, qNorm, kNorm, eps, rope, cache, requests, out);
  }

  void activateAndMulRows(const GateAndUp& in, int32_t numTokens, int32_t size,
                          Activation activation, void* out, DType type) override {
    cuda::activateAndMul(in, numTokens, size, activation, out, type, stream_);
    launched("activateAndMul");
  }

  void scale(void* x, int64_t count, float factor, DType type) override {
    cuda::scale(x, count, factor, type, stream_);
    launched("scale");
  }

  void softcap(float* x, int64_t count, float cap) override {
    cuda::softcap(x, count, cap, stream_);
    launched("softcap");
  }

  void add(void* residual, const void* x, int64_t count, DType type) override {
    cuda::add(residual, x, count, type, stream_);
    launched("add");
  }

  void addGated(const void* x, const void* gate, int32_t numTokens, int32_t width, void* out,
                DType type) override {
    cuda::addGated(x, gate, numTokens, width, out, type, stream_);
    launched("addGated");
  }

  void sumSquares(const void* qkv, int32_t numTokens, const AttentionShape& shape, float* sums,
                  DType type) override {
    cuda::sumSquares(qkv, numTokens, shape, sums, type, stream_);
    launched("sumSquares");
  }

  void normProjections(void* qkv, int32_t numTokens, const AttentionShape& shape,
                       const ProjectionNorm& norm, DType type) override {
    cuda::normProjections(qkv, numTokens, shape, norm, type, stream_);
    launched("normProjections");
  }

  void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width, void* out,
                  DType type) override {
    cuda::gatherRows(x, index, count, width, out, type, stream_);
    launched("gatherRows");
  }

  void joinColumns(const float* parts, int32_t count, int32_t partWidth, int32_t width,
                   float* out) override {
    cuda::joinColumns(parts, count, partWidth, width, out, stream_);
    launched("joinColumns");
  }

  // Experts --------------------------------------------------------------------------------

  void routeTokens(const void* logits, const SoftmaxRouting& rule, const Routing& routing,
                   DType type) override {
    cuda::routeTokens(logits, rule, routing, type, stream_);
    launched("routeTokens");
  }

  void routeTokensBySigmoid(const float* logits, const SigmoidRouting& rule,
                            const Routing& routing) override {
    cuda::routeTokensBySigmoid(logits, rule, routing, stream_);
    launched("routeTokensBySigmoid");
  }

  void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                    const LinearWeight& weight, void* out, DType type) override {
    cuda::expertLinear(x, rowsPerToken, routing, weight, out, type, stream_);
    if (weight.bias) cuda::addExpertBias(weight.bias, routing, out, type, stream_);
    launched("expertLinear");
  }

  void sumExperts(const void* x, const Routing& routing, int32_t width, void* out,
                  DType type) override {
    cuda::sumExperts(x, routing, width, out, type, stream_);
    launched("sumExperts");
  }

  void applyWeights(void* x, const Routing& routing, int32_t width, DType type) override {
    cuda::applyWeights(x, routing, width, type, stream_);
    launched("applyWeights");
  }

  void multiplyExperts(const void* x, const Routing& routing, const ExpertMlp& mlp, void* wide,
                       void* product, void* out, DType type) override {
    if (routing.numTokens == 0) return;
    if (!expertMlps_.run(x, routing, mlp, wide, product, out, type)) {
      return Ops::multiplyExperts(x, routing, mlp, wide, product, out, type);
    }
    launched("multiplyExperts");
  }

  // Sampling -------------------------------------------------------------------------------

  void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
              const RequestTable& requests, const int32_t* bitmask, const SampledFeatures& features,
              int32_t* sampled, int32_t* numNans, const Logprobs& logprobs) override {
    const int32_t most = std::max(requests.maxNumSeqs, count);
    void* workspace =
        scratch_.atLeast(samplerWorkspaceBytes(most, vocabSize, logprobs.maxLogprobs));
    void* counters = samplerCounters_.atLeast(static_cast<size_t>(most) * sizeof(unsigned));
    cuda::sample(logits, count, vocabSize, slots, requests, bitmask, features, sampled, numNans,
                 logprobs, samplerPath(features), {workspace, static_cast<unsigned*>(counters)},
                 stream_);
    launched("sample");
  }

  void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                      const int32_t* tokenIds, int32_t numTop, int32_t* numNans,
                      const Logprobs& out) override {
    void* workspace = scratch_.atLeast(samplerWorkspaceBytes(count, vocabSize, out.maxLogprobs));
    cuda::gatherLogprobs(logits, count, vocabSize, tokenIds, numTop, numNans, out, workspace,
                         stream_);
    launched("gatherLogprobs");
  }

 private:
  // Only a first launch shows whether this build has machine code or PTX for the device.
  void requireKernels() {
    cuda::fillRandom(scratch_.atLeast(4), StorageType::kFloat32, 1, 0.0f, 1.0f, 0, stream_);
    const cudaError_t status = cudaGetLastError();
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorUnsupportedPtxVersion) {
      throw Error("CUDA_UNAVAILABLE", "cuda:" + std::to_string(device_) + ", " + name() + ", is " +
                                          capability() + ", and this build has kernels for " +
                                          UNIPROC_CUDA_ARCHITECTURES + ": " + describe(status) +
                                          "; update the driver, or set CUDAARCHS and build again");
    }
    check(status, "fillRandom");
    synchronize();
  }

  // Created on first use, because it allocates pinned buffers and starts threads.
  Transfer& transfer() {
    if (!transfer_) transfer_.emplace(device_, stream_);
    return *transfer_;
  }

  void check(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    cuda::check(status, (std::string(call) + ", at or after " + lastLaunched_ + ",").c_str());
  }

  void launched(const char* operation) {
    lastLaunched_ = operation;
    check(cudaGetLastError(), operation);
  }

  const int device_;
  const cudaDeviceProp properties_;
  const Stream stream_;
  Steps steps_;
  Staging staging_;
  MemoryAccount memory_;
  Scratch scratch_;
  // Separate: their counters must stay zero between launches.
  Scratch attentionScratch_;
  Scratch samplerCounters_;
  Linear linear_;
  ExpertMlps expertMlps_;
  std::optional<Transfer> transfer_;
  std::weak_ptr<NcclGroup> group_;  // of the latest communicator, while it exists
  const char* lastLaunched_ = "opening the device";
};

}  // namespace
}  // namespace cuda

const int uniprocCudaRuntimeVersion = CUDART_VERSION;
const char uniprocCudaArchitectures[] = UNIPROC_CUDA_ARCHITECTURES;

Ops* uniprocMakeCudaOps(int index) { return std::make_unique<cuda::CudaOps>(index).release(); }

}  // namespace uniproc
