// Mixture-of-experts operations in plain kernels: each (token, expert) pair reads that expert's
// matrix.
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// A candidate for the next expert: the larger logit wins, the lower id on ties.
struct Candidate {
  float logit;
  int32_t id;
};

__device__ inline Candidate better(Candidate a, Candidate b) {
  return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
}

__device__ inline Candidate warpBest(Candidate best) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const Candidate other = {__shfl_xor_sync(kAllLanes, best.logit, offset),
                             __shfl_xor_sync(kAllLanes, best.id, offset)};
    best = better(best, other);
  }
  return best;
}

// logits [numTokens, numExperts]; expertIds and weights [numTokens, topK]. Grid: one warp per
// token. Makes topK passes over a row of logits, which stays in the L1 cache: bound by latency.
template <class T>
__global__ void __launch_bounds__(kThreads)
    routeTokensRows(const T* logits, bool normalize, Routing routing) {
  waitForPrevious();
  const int token =
      static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (token >= routing.numTokens) return;
  const T* row = logits + int64_t{token} * routing.numExperts;
  int32_t* ids = routing.expertIds + int64_t{token} * routing.topK;
  float* weights = routing.weights + int64_t{token} * routing.topK;
  const auto logitOf = [row](int32_t id) {
    const float logit = widen(row[id]);
    return isnan(logit) ? -INFINITY : logit;
  };

  bool hasNan = false;
  for (int32_t id = lane; id < routing.numExperts; id += kWarpSize) {
    hasNan |= isnan(widen(row[id]));
  }
  Candidate last = {INFINITY, -1};
  float max = 0.0f;
  float sum = __any_sync(kAllLanes, hasNan) ? NAN : 0.0f;
  for (int32_t k = 0; k < routing.topK; ++k) {
    Candidate best = {-INFINITY, routing.numExperts};
    for (int32_t id = lane; id < routing.numExperts; id += kWarpSize) {
      const Candidate candidate = {logitOf(id), id};
      const bool isTaken = candidate.logit > last.logit ||
                           (candidate.logit == last.logit && candidate.id <= last.id);
      if (!isTaken) best = better(best, candidate);
    }
    last = warpBest(best);
    if (k == 0) {
      max = last.logit;
      if (!normalize) {
        for (int32_t id = lane; id < routing.numExperts; id += kWarpSize) {
          sum += expf(logitOf(id) - max);
        }
        sum = warpSum(sum);
      }
    }
    const float numerator = expf(last.logit - max);
    if (normalize) sum += numerator;
    if (lane == 0) {
      ids[k] = last.id;
      weights[k] = numerator;
    }
  }
  __syncwarp();
  for (int32_t k = lane; k < routing.topK; k += kWarpSize) weights[k] /= sum;
}

// out [numTokens * topK, rows] = x times the experts' matrices, weight [numLocal * rows, cols] with
// or without scales. Grid: (numTokens * topK, rows / 8); one warp per element. Reads one matrix
// [rows, cols] per (token, expert): bound by memory.
template <class T, class Stored>
__global__ void __launch_bounds__(kThreads)
    expertLinearRows(const T* x, int32_t outputsPerRow, Routing routing, const Stored* weight,
                     const float* scales, int32_t scaleRows, int32_t scaleCols, int32_t rows,
                     int32_t cols, T* out) {
  waitForPrevious();
  const int64_t output = blockIdx.x;
  const int32_t row =
      static_cast<int32_t>(blockIdx.y) * kWarps + static_cast<int32_t>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (row >= rows) return;
  const int32_t expert = routing.expertIds[output] - routing.firstLocal;
  float sum = 0.0f;
  if (expert >= 0 && expert < routing.numLocal) {
    const T* input = x + output / outputsPerRow * cols;
    const int64_t weightRow = int64_t{expert} * rows + row;
    const Stored* elements = weight + weightRow * cols;
    const float* rowScales =
        scales ? scales + weightRow / scaleRows * ceilDiv(cols, scaleCols) : nullptr;
    for (int32_t col = lane; col < cols; col += kWarpSize) {
      const float scale = rowScales ? rowScales[col / scaleCols] : 1.0f;
      sum += widen(input[col]) * (widen(elements[col]) * scale);
    }
  }
  sum = warpSum(sum);
  if (lane == 0) out[output * rows + row] = narrow<T>(sum);
}

// out [numTokens, width] = sum over k of x [numTokens, topK, width] times weights [numTokens,
// topK]. Grid: (numTokens, width / 256). Reads x and writes out once: bound by memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sumExpertRows(const T* x, Routing routing, int32_t width, T* out) {
  waitForPrevious();
  const int64_t token = blockIdx.x;
  const auto i = static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
  if (i >= width) return;
  float sum = 0.0f;
  for (int32_t k = 0; k < routing.topK; ++k) {
    const int64_t row = token * routing.topK + k;
    sum += widen(x[row * width + i]) * rounded<T>(routing.weights[row]);
  }
  out[token * width + i] = narrow<T>(sum);
}

unsigned blocksOf(int32_t count, int perBlock) {
  return static_cast<unsigned>(ceilDiv(count, int32_t{perBlock}));
}

}  // namespace

void routeTokens(const void* logits, bool normalize, const Routing& routing, DType type,
                 cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  withType(type, [&]<class T>(T) {
    launch(routeTokensRows<T>, blocksOf(routing.numTokens, kWarps), kThreads, 0, stream,
           static_cast<const T*>(logits), normalize, routing);
  });
}

void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                  const LinearWeight& weight, void* out, DType type, cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  const auto rows = static_cast<int32_t>(weight.rows / routing.numLocal);
  const dim3 grid(static_cast<unsigned>(routing.numRows()), blocksOf(rows, kWarps));
  withType(type, [&]<class T>(T) {
    const auto multiply = [&]<class Stored>(Stored) {
      launch(expertLinearRows<T, Stored>, grid, kThreads, 0, stream, static_cast<const T*>(x),
             routing.topK / rowsPerToken, routing, static_cast<const Stored*>(weight.data),
             static_cast<const float*>(weight.scales), weight.format.scaleRows,
             weight.format.scaleCols, rows, static_cast<int32_t>(weight.cols),
             static_cast<T*>(out));
    };
    if (isFloat(weight.format.type)) return multiply(T{});
    multiply(__nv_fp8_e4m3{});
  });
}

void sumExperts(const void* x, const Routing& routing, int32_t width, void* out, DType type,
                cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  const dim3 grid(static_cast<unsigned>(routing.numTokens), blocksOf(width, kThreads));
  withType(type, [&]<class T>(T) {
    launch(sumExpertRows<T>, grid, kThreads, 0, stream, static_cast<const T*>(x), routing, width,
           static_cast<T*>(out));
  });
}

}  // namespace uniproc::cuda
