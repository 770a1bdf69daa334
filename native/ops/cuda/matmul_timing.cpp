#include "ops/cuda/matmul_timing.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "ops/cuda/cublas.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/graphs.h"
#include "ops/cuda/kernels.h"

namespace uniproc::cuda {
namespace {

// On an H200, of 16 algorithms with the same bits the fastest was always among the first 8.
constexpr int kCandidates = 8;
constexpr int kRounds = 4;
constexpr float kNever = std::numeric_limits<float>::infinity();
// A sample takes at least about this long.
constexpr float kSampleMilliseconds = 0.1f;
// A candidate this many times as slow as the fastest so far is timed no further: after one sample,
// and after two or more.
constexpr float kHopeless = 1.3f;
constexpr float kTooSlow = 1.1f;
// The heuristic's first stays unless another takes less than this share of its time.
constexpr float kClearlyFaster = 0.98f;

struct Candidate {
  cublasLtMatmulAlgo_t algorithm;
  float milliseconds;  // the least of its samples
};

// What decides the order of an algorithm's sums: its kind, and how it splits and joins them.
struct Order {
  int32_t kind = 0;
  int32_t splits = 0;
  uint32_t reduction = 0;
  bool operator==(const Order&) const = default;
};

Order orderOf(const cublasLtMatmulAlgo_t& algorithm) {
  Order order;
  const auto get = [&]<class T>(cublasLtMatmulAlgoConfigAttributes_t attribute, T& value) {
    check(
        cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof value, nullptr),
        "cublasLtMatmulAlgoConfigGetAttribute");
  };
  get(CUBLASLT_ALGO_CONFIG_ID, order.kind);
  get(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, order.splits);
  get(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, order.reduction);
  return order;
}

size_t elements(int64_t side, int32_t numTokens) { return static_cast<size_t>(side * numTokens); }

}  // namespace

MatmulTiming::MatmulTiming(cublasLtHandle_t handle, cudaStream_t stream, MemoryAccount& memory,
                           const MatmulShape& largest, const std::vector<const void*>& weights,
                           const void* bias, void* workspace)
    : handle_(handle),
      stream_(stream),
      weights_(weights),
      bias_(bias),
      workspace_(workspace),
      x_(memory, elements(largest.cols, largest.numTokens) * sizeOf(largest.type)),
      out_(memory, elements(largest.rows, largest.numTokens) * sizeOf(largest.outType)),
      sum_(memory, sizeof(uint64_t)) {
  fillRandom(x_.data(), storageOf(largest.type),
             static_cast<int64_t>(elements(largest.cols, largest.numTokens)), 0.0f, 1.0f, 0,
             stream_);
  check(cudaGetLastError(), "fillRandom");
}

std::optional<uint64_t> MatmulTiming::bitsOf(MatmulProblem& problem, const MatmulShape& shape,
                                             const cublasLtMatmulAlgo_t& algorithm) {
  const size_t bytes = elements(shape.rows, shape.numTokens) * sizeOf(shape.outType);
  check(cudaMemsetAsync(out_.data(), 0xff, bytes, stream_), "cudaMemsetAsync");
  // Some algorithms that the heuristic returns do not run.
  if (problem.run(handle_, x_.data(), weights_[0], out_.data(), algorithm, workspace_, stream_) !=
      CUBLAS_STATUS_SUCCESS) {
    static_cast<void>(cudaGetLastError());
    return std::nullopt;
  }
  uint64_t bits = 0;
  checksum(out_.data(), bytes, static_cast<uint64_t*>(sum_.data()), stream_);
  check(cudaGetLastError(), "checksum");
  check(cudaMemcpyAsync(&bits, sum_.data(), sizeof bits, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  return bits;
}

float MatmulTiming::millisecondsOf(const std::function<void()>& run) {
  check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
  run();
  check(cudaEventRecord(end_, stream_), "cudaEventRecord");
  check(cudaEventSynchronize(end_), "cudaEventSynchronize");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
  return milliseconds;
}

cublasLtMatmulAlgo_t MatmulTiming::fastest(const MatmulShape& shape) {
  MatmulProblem problem(shape, bias_);
  std::vector<Candidate> candidates;
  std::optional<uint64_t> bits;
  Order order;
  for (const cublasLtMatmulAlgo_t& algorithm : problem.algorithms(handle_, kCandidates)) {
    if (candidates.empty()) {
      bits = bitsOf(problem, shape, algorithm);
      order = orderOf(algorithm);
      if (!bits) throw Error("DEVICE_FAILED", "cuBLASLt's first algorithm does not run");
      candidates.push_back({algorithm, kNever});
    } else if (orderOf(algorithm) == order && bitsOf(problem, shape, algorithm) == bits) {
      candidates.push_back({algorithm, kNever});
    }
  }
  if (candidates.empty()) throw Error("DEVICE_FAILED", "cuBLASLt has no algorithm for a product");

  const auto run = [&](const Candidate& candidate, int count) {
    for (int i = 0; i < count; ++i) {
      check(problem.run(handle_, x_.data(), weights_[static_cast<size_t>(i) % weights_.size()],
                        out_.data(), candidate.algorithm, workspace_, stream_),
            "cublasLtMatmul");
    }
  };
  const float once = std::max(millisecondsOf([&] { run(candidates[0], 1); }), 0.001f);
  int count = 1;
  if (once < kSampleMilliseconds) {
    // All weights, so that none is still in the L2 cache from the sample before: some algorithms
    // gain from that more than others.
    count = std::max(static_cast<int>(std::ceil(kSampleMilliseconds / once)),
                     static_cast<int>(weights_.size()));
  }
  CudaGraphs graphs(stream_);
  float best = kNever;
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      Candidate& candidate = candidates[i];
      const float most = (round == 1 ? kHopeless : kTooSlow) * best;
      // The first stays, so that the others compare with as many samples of it as of theirs.
      if (i > 0 && round > 0 && candidate.milliseconds > most) continue;
      const auto key = static_cast<int32_t>(i);
      const auto launch = [&] {
        if (count == 1) return run(candidate, 1);
        graphs.launch(key, [&] { run(candidate, count); });
      };
      if (round == 0 && count > 1) {
        graphs.launch(key, [] {});  // The first call records nothing.
        launch();
      }
      candidate.milliseconds = std::min(candidate.milliseconds, millisecondsOf(launch));
      best = std::min(best, candidate.milliseconds);
    }
  }
  const auto& fastest = *std::ranges::min_element(candidates, {}, &Candidate::milliseconds);
  const bool isClear = fastest.milliseconds < kClearlyFaster * candidates[0].milliseconds;
  return isClear ? fastest.algorithm : candidates[0].algorithm;
}

}  // namespace uniproc::cuda
