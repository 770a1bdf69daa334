// When steps begin and end on the stream, and the thread that waits for it.
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

// The thread sleeps while it waits; with two steps in flight the device has the next one already,
// and the time to wake up is not lost.
class Steps {
 public:
  Steps(int device, cudaStream_t stream);
  // After every step that was ended is done.
  ~Steps();
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;

  // begin and end are the device thread's calls, times is anybody's. `last` is the operation
  // launched last before the end: what an error is reported at or after.
  void begin();
  void end(const char* last, Ops::Done done);
  StepTimes times() const;

 private:
  struct Marks {
    const CudaEvent begin{CudaEvent::Timing::kYes};
    const CudaEvent end{CudaEvent::Timing::kYes};
  };
  struct Ended {
    std::unique_ptr<Marks> marks;
    const char* last;
    Ops::Done done;
  };

  void run();
  void wait(Ended& step);
  void count(std::unique_ptr<Marks> marks);
  std::unique_ptr<Marks> unusedMarks();

  const int device_;
  const cudaStream_t stream_;
  std::unique_ptr<Marks> begun_;

  mutable std::mutex mutex_;  // of the two below
  StepTimes times_;
  std::vector<std::unique_ptr<Marks>> unused_;

  std::unique_ptr<Marks> previous_;  // the thread's own: of the step that was done last
  Queue<Ended> ended_;
  std::thread thread_;
};

}  // namespace uniproc::cuda
