// The ranks joined by NCCL, and their common failure: whichever thread detects it first records it,
// and every later call on any thread throws it.
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

// NCCL's communicator is non-blocking: each call returns while NCCL is still working, and the
// device's thread polls until it is done. So the thread notices a failure while it waits, and
// another thread can abort the communicator between two calls.
class NcclGroup {
 public:
  // Uses the calling thread's current device.
  NcclGroup(const CommunicatorConfig& config, int device);
  // Requires `close`.
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  // The following are called on the device's thread and throw the group's failure.
  //
  // Joins the group; returns when every rank has joined.
  void join(const nccl::UniqueId& id);
  // Calls the NCCL function `name`; returns when its work is on the stream.
  void call(const char* name, const std::function<nccl::Result(nccl::Comm)>& enqueue);
  // Returns when all work on the stream has run, or the device has failed, which its next call
  // reports. Fails the group after `timeout` milliseconds.
  void wait(cudaStream_t stream, int64_t timeout);
  void wait(cudaStream_t stream) { wait(stream, config_.timeout); }
  void throwIfFailed() const;
  // Ends this rank's membership. No work of the group may be on the stream, and no graph may hold
  // it.
  void close() noexcept;

  // The following may be called on any thread.
  //
  // Ends the waits of the host and the kernels, without blocking. Only the first call has an
  // effect.
  void fail(std::exception_ptr failure) noexcept;
  void abort(const std::string& reason) noexcept;
  // Null unless the group failed.
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

  mutable std::mutex mutex_;  // guards the members below; held during NCCL's short calls
  nccl::Comm comm_ = nullptr;
  std::exception_ptr failure_;
  std::thread aborting_;
};

}  // namespace uniproc::cuda
