#include "ceilings/device.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/cuda/cuda_check.h"

namespace uniproc::ceilings {

using cuda::check;

namespace {

constexpr double kMaxRunsPerSample = 64;

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& record) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
    try {
      record();
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &graph_));
      destroy();
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph_), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph_, 0);
    if (status != cudaSuccess) destroy();
    check(status, "cudaGraphInstantiate");
  }
  ~Graph() { destroy(); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
  }

 private:
  void destroy() {
    if (executable_) static_cast<void>(cudaGraphExecDestroy(executable_));
    if (graph_) static_cast<void>(cudaGraphDestroy(graph_));
  }

  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

double secondsOfRuns(cudaStream_t stream, int runs, const std::function<void()>& run) {
  const Event begin;
  const Event end;
  check(cudaEventRecord(begin, stream), "cudaEventRecord");
  for (int i = 0; i < runs; ++i) run();
  check(cudaEventRecord(end, stream), "cudaEventRecord");
  check(cudaEventSynchronize(end), "cudaEventSynchronize");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
  return milliseconds / 1e3 / runs;
}

}  // namespace

Stream::Stream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  check(cudaMalloc(&data_, bytes), ("cudaMalloc of " + std::to_string(bytes) + " bytes").c_str());
}

PinnedMemory::PinnedMemory(size_t bytes) {
  check(cudaMallocHost(&data_, bytes),
        ("cudaMallocHost of " + std::to_string(bytes) + " bytes").c_str());
}

double secondsOf(cudaStream_t stream, Effort effort, const std::function<void()>& run) {
  secondsOfRuns(stream, 1, run);
  const double once = secondsOfRuns(stream, 1, run);
  const double wanted = std::ceil(effort.secondsPerSample / std::max(once, 1e-6));
  const int runs = static_cast<int>(std::clamp(wanted, 1.0, kMaxRunsPerSample));
  std::vector<double> seconds(effort.samples);
  for (double& sample : seconds) sample = secondsOfRuns(stream, runs, run);
  const auto middle = seconds.begin() + effort.samples / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

double graphSecondsOf(cudaStream_t stream, Effort effort, const std::function<void()>& record) {
  const Graph graph(stream, record);
  return secondsOf(stream, effort, [&] { graph.launch(stream); });
}

}  // namespace uniproc::ceilings
