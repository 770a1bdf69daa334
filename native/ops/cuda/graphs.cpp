#include "ops/cuda/graphs.h"

#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {
namespace {

// A graph that exists only until it is instantiated.
class Graph {
 public:
  ~Graph() {
    if (graph_) static_cast<void>(cudaGraphDestroy(graph_));
  }
  cudaGraph_t* out() { return &graph_; }
  cudaGraph_t get() const { return graph_; }

 private:
  cudaGraph_t graph_ = nullptr;
};

}  // namespace

CudaGraphs::~CudaGraphs() {
  static_cast<void>(cudaStreamSynchronize(stream_));  // graphs may still run
  for (const auto& [key, graph] : graphs_) {
    if (graph) static_cast<void>(cudaGraphExecDestroy(graph));
  }
}

void CudaGraphs::launch(int32_t key, const std::function<void()>& record) {
  const auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    record();
    graphs_.emplace(key, nullptr);  // only after a complete run
    return;
  }
  cudaGraphExec_t& graph = found->second;
  if (!graph) graph = capture(record);
  check(cudaGraphLaunch(graph, stream_), "cudaGraphLaunch");
}

cudaGraphExec_t CudaGraphs::capture(const std::function<void()>& record) const {
  Graph graph;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
  try {
    record();
  } catch (...) {
    static_cast<void>(cudaStreamEndCapture(stream_, graph.out()));
    static_cast<void>(cudaGetLastError());  // clear the error for the next operation
    throw;
  }
  check(cudaStreamEndCapture(stream_, graph.out()), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph.get(), 0), "cudaGraphInstantiate");
  return executable;
}

}  // namespace uniproc::cuda
