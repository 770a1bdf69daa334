// The ranks that NCCL has joined, and how what they do together ends: for one reason, found out by
// whichever thread, from then on told to all.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "backend/communicator.h"
#include "ops/cuda/nccl_library.h"

namespace uniproc::cuda {

// NCCL's communicator is one that never blocks: each call returns while NCCL is still at it, so
// that the device's thread, which asks again until it is done, can be told of a failure meanwhile,
// and another thread can end the communicator between two of its calls.
class NcclGroup {
 public:
  // On the calling thread's device.
  NcclGroup(const CommunicatorConfig& config, int device);
  // After `close`.
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  // These are the device thread's, and throw what the group failed with.
  //
  // Joins; returns when every rank has.
  void join(const nccl::UniqueId& id);
  // Makes the call of NCCL that is called `name`; returns when what it enqueues is on its stream.
  void call(const char* name, const std::function<nccl::Result(nccl::Comm)>& enqueue);
  // Returns when all that is on the stream has run, or the device has failed, which its next call
  // tells. Where that takes longer than `timeout` milliseconds the group fails.
  void wait(cudaStream_t stream, int64_t timeout);
  void wait(cudaStream_t stream) { wait(stream, config_.timeout); }
  void throwIfFailed() const;
  // Ends this rank's part. Nothing of it may be on the stream, and no graph may hold it.
  void close() noexcept;

  // These are any thread's.
  //
  // Ends the waits of the host and of the kernels, without waiting itself. Only the first counts.
  void fail(std::exception_ptr failure) noexcept;
  void abort(const std::string& reason) noexcept;
  // Null while all is well.
  std::exception_ptr failure() const noexcept;

  // A word of host memory that kernels can read: not zero once the group has failed.
  const uint32_t* failedWord() const { return deviceWord_; }

 private:
  nccl::Result start(const std::function<nccl::Result(nccl::Comm)>& enqueue);
  nccl::Result progress();
  [[noreturn]] void failTimeout(const char* doing, int64_t timeout);
  [[noreturn]] void failCall(const char* name, nccl::Result result);

  const CommunicatorConfig config_;
  const int device_;
  const nccl::Library& nccl_;
  uint32_t* hostWord_ = nullptr;
  uint32_t* deviceWord_ = nullptr;

  mutable std::mutex mutex_;  // of the three below; held during NCCL's calls, which are short
  nccl::Comm comm_ = nullptr;
  std::exception_ptr failure_;
  std::thread aborting_;
};

}  // namespace uniproc::cuda
