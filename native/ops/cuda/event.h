#pragma once

#include <cuda_runtime_api.h>

#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {

// An event on which host threads block instead of spinning.
class CudaEvent {
 public:
  enum class Timing : bool { kNo, kYes };

  explicit CudaEvent(Timing timing) {
    const unsigned flags = timing == Timing::kYes ? 0 : cudaEventDisableTiming;
    check(cudaEventCreateWithFlags(&event_, flags | cudaEventBlockingSync),
          "cudaEventCreateWithFlags");
  }
  ~CudaEvent() { static_cast<void>(cudaEventDestroy(event_)); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace uniproc::cuda
