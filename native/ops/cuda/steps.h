// Records when steps begin and end on the stream, and completes them on a thread.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/queue.h"
#include "ops/cuda/event.h"
#include "ops/ops.h"

namespace uniproc::cuda {

// The thread sleeps while it waits; with two steps in flight, its wake-up latency is hidden.
class Steps {
 public:
  Steps(int device, cudaStream_t stream);
  // Waits for every ended step.
  ~Steps();
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;

  // Call begin and end on the device's thread, times on any thread. `last` is the last operation
  // launched before the end; an error is reported "at or after" it.
  void begin();
  void end(const char* last, Ops::Done done);
  StepTimes times() const;

 private:
  struct StepEvents {
    const CudaEvent begin{CudaEvent::Timing::kYes};
    const CudaEvent end{CudaEvent::Timing::kYes};
  };
  struct Ended {
    std::unique_ptr<StepEvents> events;
    const char* last;
    Ops::Done done;
  };

  void run();
  void wait(Ended& step);
  void count(std::unique_ptr<StepEvents> events);
  std::unique_ptr<StepEvents> idleEvents();

  const int device_;
  const cudaStream_t stream_;
  std::unique_ptr<StepEvents> current_;

  mutable std::mutex mutex_;  // guards the two members below
  StepTimes times_;
  std::vector<std::unique_ptr<StepEvents>> unused_;

  std::unique_ptr<StepEvents> previous_;  // used by the thread only: the last completed step
  Queue<Ended> ended_;
  std::thread thread_;
};

}  // namespace uniproc::cuda
