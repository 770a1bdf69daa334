// Mixture-of-experts operations in plain kernels: each (token, expert) pair reads that expert's
// matrix.
#include <climits>

#include "ops/cuda/access.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/stored_weight.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRowsAtOnce = 4;  // that a thread of sumExpertRows loads

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

__device__ inline float scaleOf(const SoftmaxRouting& rule, int32_t expert) {
  return rule.expertScales ? rule.expertScales[expert] : 1.0f;
}

// logits [numTokens, numExperts]; expertIds and weights [numTokens, topK]. Grid: one warp per
// token. Makes topK passes over a row of logits, which stays in the L1 cache: bound by latency.
template <class T>
__global__ void __launch_bounds__(kThreads)
    routeTokensRows(const T* logits, SoftmaxRouting rule, Routing routing) {
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
      if (!rule.normalize) {
        for (int32_t id = lane; id < routing.numExperts; id += kWarpSize) {
          sum += expf(logitOf(id) - max);
        }
        sum = warpSum(sum);
      }
    }
    const float numerator = expf(last.logit - max);
    if (rule.normalize) sum += numerator;
    if (lane == 0) {
      ids[k] = last.id;
      weights[k] = numerator;
    }
  }
  __syncwarp();
  for (int32_t k = lane; k < routing.topK; k += kWarpSize) {
    weights[k] = weights[k] / sum * scaleOf(rule, ids[k]);
  }
}

// The same for up to 32 kPerLane experts, whose logits stay in registers, and topK up to 32. Bound
// by latency.
template <class T, int kPerLane>
__global__ void __launch_bounds__(kThreads)
    routeTokensFew(const T* logits, SoftmaxRouting rule, Routing routing) {
  waitForPrevious();
  const int token =
      static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (token >= routing.numTokens) return;
  const T* row = logits + int64_t{token} * routing.numExperts;
  // The bits of a float in an order of unsigned numbers; 0 for none, and one zero of both.
  const auto keyOf = [](float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  };
  const auto logitOf = [](uint32_t key) {
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
  };

  uint32_t keys[kPerLane];  // of expert lane + 32 i
  bool hasNan = false;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int id = lane + i * kWarpSize;
    const float logit = id < routing.numExperts ? widen(row[id]) : -INFINITY;
    hasNan |= isnan(logit);
    keys[i] = id < routing.numExperts ? keyOf(isnan(logit) ? -INFINITY : logit) : 0;
  }
  float max = 0.0f;
  float sum = __any_sync(kAllLanes, hasNan) ? NAN : 0.0f;
  int32_t ownId = 0;  // of the expert that this lane writes
  float ownNumerator = 0.0f;
  for (int32_t k = 0; k < routing.topK; ++k) {
    uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = ::max(best, keys[i]);
    best = __reduce_max_sync(kAllLanes, best);
    unsigned id = UINT_MAX;
#pragma unroll
    for (int i = kPerLane - 1; i >= 0; --i) {
      if (keys[i] == best) id = lane + i * kWarpSize;
    }
    id = __reduce_min_sync(kAllLanes, id);
    const float logit = logitOf(best);
    if (k == 0) {
      max = logit;
      if (!rule.normalize) {
        float exps = 0.0f;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          if (keys[i] != 0) exps += expf(logitOf(keys[i]) - max);
        }
        sum += warpSum(exps);
      }
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (id == static_cast<unsigned>(lane + i * kWarpSize)) keys[i] = 0;
    }
    const float numerator = expf(logit - max);
    if (rule.normalize) sum += numerator;
    if (lane == k) {
      ownId = static_cast<int32_t>(id);
      ownNumerator = numerator;
    }
  }
  if (lane >= routing.topK) return;
  const int64_t at = int64_t{token} * routing.topK + lane;
  routing.expertIds[at] = ownId;
  routing.weights[at] = ownNumerator / sum * scaleOf(rule, ownId);
}

// out [numTokens * topK, rows] = x times the experts' matrices, weight [numLocal * rows, cols] in
// any format that is not ordered. Grid: (numTokens * topK, rows / 8); one warp per element. Reads
// one matrix [rows, cols] per (token, expert): bound by memory.
template <class T, StorageType kType>
__global__ void __launch_bounds__(kThreads)
    expertLinearRows(const T* x, int32_t outputsPerRow, Routing routing, StoredWeight weight,
                     int32_t rows, T* out) {
  waitForPrevious();
  const int64_t output = blockIdx.x;
  const int32_t row =
      static_cast<int32_t>(blockIdx.y) * kWarps + static_cast<int32_t>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (row >= rows) return;
  const int32_t expert = routing.expertIds[output] - routing.firstLocal;
  float sum = 0.0f;
  if (expert >= 0 && expert < routing.numLocal) {
    const T* input = x + output / outputsPerRow * weight.cols;
    const int64_t weightRow = int64_t{expert} * rows + row;
    for (int32_t col = lane; col < weight.cols; col += kWarpSize) {
      sum += widen(input[col]) * storedElement<kType, T>(weight, weightRow, col);
    }
  }
  sum = warpSum(sum);
  if (lane == 0) out[output * rows + row] = narrow<T>(sum);
}

// out [numTokens, width] = sum over k of x [numTokens, topK, width] times weights [numTokens,
// topK], of the experts of this rank. Grid: (numTokens, width / (256 N)). Reads x and writes out
// once: bound by memory.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    sumExpertRows(const T* x, Routing routing, int32_t width, T* out) {
  waitForPrevious();
  const int64_t token = blockIdx.x;
  const auto i = static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x) * N;
  if (i >= width) return;
  float sums[N] = {};
  // Loads a few rows before it adds them. Rows of other ranks' experts may have any values.
  for (int32_t first = 0; first < routing.topK; first += kRowsAtOnce) {
    Vector<T, N> rows[kRowsAtOnce];
    float weights[kRowsAtOnce];
    bool isLocal[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t row = token * routing.topK + min(first + r, routing.topK - 1);
      const int32_t expert = routing.expertIds[row] - routing.firstLocal;
      isLocal[r] = first + r < routing.topK && expert >= 0 && expert < routing.numLocal;
      weights[r] = rounded<T>(routing.weights[row]);
      rows[r] = loadVector<N>(x + row * width + i);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      if (!isLocal[r]) continue;
#pragma unroll
      for (int n = 0; n < N; ++n) sums[n] += widen(rows[r].elements[n]) * weights[r];
    }
  }
  storeNarrowed<N>(out + token * width + i, sums);
}

unsigned blocksOf(int32_t count, int perBlock) {
  return static_cast<unsigned>(ceilDiv(count, int32_t{perBlock}));
}

}  // namespace

void routeTokens(const void* logits, const SoftmaxRouting& rule, const Routing& routing, DType type,
                 cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  withType(type, [&]<class T>(T) {
    const auto route = [&](auto kernel) {
      launch(kernel, blocksOf(routing.numTokens, kWarps), kThreads, 0, stream,
             static_cast<const T*>(logits), rule, routing);
    };
    if (routing.topK > kWarpSize || routing.numExperts > 16 * kWarpSize) {
      route(routeTokensRows<T>);
    } else if (routing.numExperts > 4 * kWarpSize) {
      route(routeTokensFew<T, 16>);
    } else {
      route(routeTokensFew<T, 4>);
    }
  });
}

void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                  const LinearWeight& weight, void* out, DType type, cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  if (type == weight.dtype && expertLinearGroups(x, rowsPerToken, routing, weight, out, stream)) {
    return;
  }
  const auto rows = static_cast<int32_t>(weight.rows / routing.numLocal);
  const dim3 grid(static_cast<unsigned>(routing.numRows()), blocksOf(rows, kWarps));
  withType(type, [&]<class T>(T) {
    withStoredType(weight.format.type, [&]<StorageType kType>() {
      launch(expertLinearRows<T, kType>, grid, kThreads, 0, stream, static_cast<const T*>(x),
             routing.topK / rowsPerToken, routing, StoredWeight::of(weight), rows,
             static_cast<T*>(out));
    });
  });
}

void sumExperts(const void* x, const Routing& routing, int32_t width, void* out, DType type,
                cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  withType(type, [&](auto element) {
    using T = decltype(element);
    withAccess<T>(width, {x, out}, [&](auto access) {
      constexpr int N = access();
      const dim3 grid(static_cast<unsigned>(routing.numTokens), blocksOf(width, kThreads * N));
      launch(sumExpertRows<T, N>, grid, kThreads, 0, stream, static_cast<const T*>(x), routing,
             width, static_cast<T*>(out));
    });
  });
}

}  // namespace uniproc::cuda
