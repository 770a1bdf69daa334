#include "ops/cuda/nccl_group.h"

#include <chrono>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/thread_name.h"
#include "comm/deadline.h"
#include "comm/peer_lost.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {
namespace {

// Waits between two polls, first only yielding to other threads.
class Backoff {
 public:
  void next() {
    if (++count_ <= kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  static constexpr int kYields = 200;
  int count_ = 0;
};

bool isDone(cudaStream_t stream) {
  const cudaError_t status = cudaStreamQuery(stream);
  if (status != cudaErrorNotReady) return true;
  static_cast<void>(cudaGetLastError());  // not an error
  return false;
}

}  // namespace

NcclGroup::NcclGroup(const CommunicatorConfig& config, int device)
    : config_(config), device_(device), nccl_(nccl::library()) {
  void* word = nullptr;
  check(cudaHostAlloc(&word, sizeof(uint32_t), cudaHostAllocMapped | cudaHostAllocPortable),
        "cudaHostAlloc");
  hostWord_ = static_cast<uint32_t*>(word);
  *hostWord_ = 0;
  if (const cudaError_t status = cudaHostGetDevicePointer(&word, hostWord_, 0)) {
    static_cast<void>(cudaFreeHost(hostWord_));
    check(status, "cudaHostGetDevicePointer");
  }
  deviceWord_ = static_cast<uint32_t*>(word);
}

NcclGroup::~NcclGroup() { static_cast<void>(cudaFreeHost(hostWord_)); }

void NcclGroup::join(const nccl::UniqueId& id) {
  call("ncclCommInitRankConfig", [&](nccl::Comm) {
    nccl::Config config;
    config.blocking = 0;
    return nccl_.commInitRankConfig(&comm_, config_.worldSize, id, config_.rank, &config);
  });
}

void NcclGroup::call(const char* name, const std::function<nccl::Result(nccl::Comm)>& enqueue) {
  const Deadline deadline(config_.timeout);
  nccl::Result result = start(enqueue);
  for (Backoff pause; result == nccl::kInProgress; pause.next()) {
    result = progress();
    if (result == nccl::kInProgress && deadline.isPast()) failTimeout(name, config_.timeout);
  }
  if (result != nccl::kSuccess) failCall(name, result);
}

nccl::Result NcclGroup::start(const std::function<nccl::Result(nccl::Comm)>& enqueue) {
  std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  return enqueue(comm_);
}

nccl::Result NcclGroup::progress() {
  std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  nccl::Result state = nccl::kSuccess;
  const nccl::Result result = nccl_.commGetAsyncError(comm_, &state);
  return result == nccl::kSuccess ? state : result;
}

void NcclGroup::wait(cudaStream_t stream, int64_t timeout) {
  const Deadline deadline(timeout);
  for (Backoff pause; !isDone(stream); pause.next()) {
    if (!failure() && deadline.isPast()) failTimeout("a collective", timeout);
  }
  throwIfFailed();
}

void NcclGroup::failTimeout(const char* doing, int64_t timeout) {
  fail(std::make_exception_ptr(PeerLost(std::nullopt, "rank " + std::to_string(config_.rank) +
                                                          " waited " + std::to_string(timeout) +
                                                          " ms for the other ranks in " + doing)));
  std::rethrow_exception(failure());
}

void NcclGroup::failCall(const char* name, nccl::Result result) {
  std::string message = std::string(name) + " failed: ";
  {
    std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    message += nccl::describe(result, comm_);
  }
  fail(result == nccl::kRemoteError
           ? std::make_exception_ptr(PeerLost(std::nullopt, message))
           : std::make_exception_ptr(Error("COMMUNICATOR_FAILED", message)));
  std::rethrow_exception(failure());
}

void NcclGroup::abort(const std::string& reason) noexcept {
  try {
    fail(std::make_exception_ptr(PeerLost(std::nullopt, reason)));
  } catch (...) {
    fail(std::current_exception());  // no memory for the message
  }
}

// NCCL's abort blocks while a graph holds its communicator, so a separate thread runs it; `close`
// joins that thread.
void NcclGroup::fail(std::exception_ptr failure) noexcept {
  std::lock_guard lock(mutex_);
  if (failure_) return;
  failure_ = std::move(failure);
  std::atomic_ref(*hostWord_).store(1, std::memory_order_release);
  if (!comm_) return;
  try {
    aborting_ = std::thread([this, comm = comm_] {
      setThreadName("NcclAbort");
      static_cast<void>(cudaSetDevice(device_));
      static_cast<void>(nccl_.commAbort(comm));
    });
    comm_ = nullptr;
  } catch (...) {  // no thread could be started: `close` aborts
  }
}

std::exception_ptr NcclGroup::failure() const noexcept {
  std::lock_guard lock(mutex_);
  return failure_;
}

void NcclGroup::throwIfFailed() const {
  if (std::exception_ptr error = failure()) std::rethrow_exception(error);
}

// Aborts even if the group is healthy: NCCL's other ways to finish wait for the other ranks, which
// may be gone.
void NcclGroup::close() noexcept {
  std::thread aborting;
  nccl::Comm comm = nullptr;
  {
    std::lock_guard lock(mutex_);
    comm = std::exchange(comm_, nullptr);
    aborting.swap(aborting_);
  }
  if (aborting.joinable()) aborting.join();
  if (comm) static_cast<void>(nccl_.commAbort(comm));
}

}  // namespace uniproc::cuda
