// Routing by sigmoids, and what gpt-oss's experts add to the products: biases and a clamped SwiGLU.
#include "ops/cuda/access.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr float kTiny = 1e-20f;      // of the sum that normalizes, as in DeepSeek-V3
constexpr float kLowest = -3.4e38f;  // of a NaN: above experts that cannot be chosen

// A candidate for the next expert or group: the larger score wins, the lower index on ties.
struct Candidate {
  float score;
  int32_t index;

  __device__ bool isBefore(const Candidate& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

__device__ inline Candidate warpFirst(Candidate first) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const Candidate other = {__shfl_xor_sync(kAllLanes, first.score, offset),
                             __shfl_xor_sync(kAllLanes, first.index, offset)};
    if (other.isBefore(first)) first = other;
  }
  return first;
}

// The best of `count` candidates behind `last`, for all lanes.
template <class ScoreOf>
__device__ Candidate nextBest(int32_t count, const Candidate& last, ScoreOf scoreOf) {
  Candidate best = {-INFINITY, count};
  for (auto i = static_cast<int32_t>(threadIdx.x % kWarpSize); i < count; i += kWarpSize) {
    const Candidate candidate = {scoreOf(i), i};
    if (last.isBefore(candidate) && candidate.isBefore(best)) best = candidate;
  }
  return warpFirst(best);
}

// logits [numTokens, numExperts]; expertIds and weights [numTokens, topK]. Grid: one warp per
// token; shared memory: a float for each group of each warp. Makes topK passes over a row of
// logits, which stays in the L1 cache: bound by latency.
__global__ void __launch_bounds__(kThreads)
    routeBySigmoid(const float* logits, SigmoidRouting rule, bool isByLogits, Routing routing) {
  extern __shared__ float groupSums[];  // [kWarps, numGroups]
  waitForPrevious();
  const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpSize;
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarpSize;
  const int32_t token = static_cast<int32_t>(blockIdx.x) * kWarps + warp;
  if (token >= routing.numTokens) return;
  const int32_t numExperts = routing.numExperts;
  const float* row = logits + int64_t{token} * numExperts;
  int32_t* ids = routing.expertIds + int64_t{token} * routing.topK;
  float* weights = routing.weights + int64_t{token} * routing.topK;
  const auto weightOf = [row](int32_t id) { return 1.0f / (1.0f + expf(-row[id])); };
  const auto scoreOf = [&](int32_t id) {
    if (isnan(row[id])) return kLowest;
    return isByLogits ? row[id] : weightOf(id) + (rule.bias ? rule.bias[id] : 0.0f);
  };

  bool hasNan = false;
  for (int32_t id = lane; id < numExperts; id += kWarpSize) hasNan |= isnan(row[id]);
  hasNan = __any_sync(kAllLanes, hasNan);

  const bool hasGroups = rule.numChosenGroups < rule.numGroups;
  const int32_t groupSize = numExperts / rule.numGroups;
  float* sums = groupSums + warp * rule.numGroups;
  const Candidate none = {INFINITY, -1};
  Candidate lastGroup = none;
  if (hasGroups) {
    for (int32_t group = lane; group < rule.numGroups; group += kWarpSize) {
      float first = -INFINITY;
      float second = -INFINITY;
      for (int32_t i = 0; i < groupSize; ++i) {
        const float score = scoreOf(group * groupSize + i);
        second = fmaxf(second, fminf(first, score));
        first = fmaxf(first, score);
      }
      sums[group] = groupSize > 1 ? first + second : first;
    }
    __syncwarp();
    for (int32_t k = 0; k < rule.numChosenGroups; ++k) {
      lastGroup = nextBest(rule.numGroups, lastGroup, [&](int32_t group) { return sums[group]; });
    }
  }
  const auto chosenScoreOf = [&](int32_t id) {
    const int32_t group = id / groupSize;
    const bool isOut = hasGroups && lastGroup.isBefore({sums[group], group});
    return isOut ? -INFINITY : scoreOf(id);
  };

  Candidate last = none;
  float sum = hasNan ? NAN : 0.0f;
  for (int32_t k = 0; k < routing.topK; ++k) {
    last = nextBest(numExperts, last, chosenScoreOf);
    const float weight = weightOf(last.index);
    sum += weight;
    if (lane == 0) {
      ids[k] = last.index;
      weights[k] = weight;
    }
  }
  __syncwarp();
  const float divisor = rule.normalize ? sum + kTiny : hasNan ? sum : 1.0f;
  for (int32_t k = lane; k < routing.topK; k += kWarpSize) {
    weights[k] = weights[k] / divisor * rule.scale;
  }
}

// x [numTokens, width] *= the weight of the token's expert, rounded to T; then the weight is 1.
// Grid: numTokens. Reads and writes x once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) applyWeightRows(T* x, int32_t width, float* weights) {
  waitForPrevious();
  const float weight = rounded<T>(weights[blockIdx.x]);
  T* row = x + int64_t{blockIdx.x} * width;
  for (int32_t col = static_cast<int32_t>(threadIdx.x) * N; col < width; col += kThreads * N) {
    float values[N];
    loadWidened<N>(row + col, values);
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] *= weight;
    storeNarrowed<N>(row + col, values);
  }
  __syncthreads();  // every thread has read the weight
  if (threadIdx.x == 0) weights[blockIdx.x] = 1.0f;
}

// out [numTokens * topK, rows] += the row's expert's bias of bias [numLocal, rows]; rows of other
// ranks' experts stay as they are. Grid: (numTokens * topK, rows / (256 N)). Reads and writes out
// once.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    addExpertBiasRows(const T* bias, Routing routing, int32_t rows, T* out) {
  waitForPrevious();
  const int32_t expert = routing.expertIds[blockIdx.x] - routing.firstLocal;
  const int64_t i = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (expert < 0 || expert >= routing.numLocal || i >= rows) return;
  T* to = out + int64_t{blockIdx.x} * rows + i;
  float values[N];
  float biases[N];
  loadWidened<N>(to, values);
  loadWidened<N>(bias + int64_t{expert} * rows + i, biases);
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] += biases[n];
  storeNarrowed<N>(to, values);
}

dim3 gridOf(int32_t rows, int64_t accessesPerRow) {
  return {static_cast<unsigned>(rows),
          static_cast<unsigned>(ceilDiv<int64_t>(accessesPerRow, kThreads))};
}

}  // namespace

void routeTokensBySigmoid(const float* logits, const SigmoidRouting& rule, const Routing& routing,
                          cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  const auto blocks = static_cast<unsigned>(ceilDiv(routing.numTokens, kWarps));
  const size_t sharedBytes = sizeof(float) * static_cast<size_t>(kWarps * rule.numGroups);
  launch(routeBySigmoid, blocks, kThreads, sharedBytes, stream, logits, rule, rule.isByLogits(),
         routing);
}

void applyWeights(void* x, const Routing& routing, int32_t width, DType type, cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  withType(type, [&]<class T>(T) {
    withAccess<T>(width, {x}, [&](auto access) {
      constexpr int N = access();
      launch(applyWeightRows<T, N>, static_cast<unsigned>(routing.numTokens), kThreads, 0, stream,
             static_cast<T*>(x), width, routing.weights);
    });
  });
}

void addExpertBias(const Weight& bias, const Routing& routing, void* out, DType type,
                   cudaStream_t stream) {
  if (routing.numTokens == 0) return;
  const auto rows = static_cast<int32_t>(bias.rows / routing.numLocal);
  withType(type, [&]<class T>(T) {
    withAccess<T>(rows, {bias.data, out}, [&](auto access) {
      constexpr int N = access();
      launch(addExpertBiasRows<T, N>, gridOf(routing.numRows(), ceilDiv(rows, N)), kThreads, 0,
             stream, static_cast<const T*>(bias.data), routing, rows, static_cast<T*>(out));
    });
  });
}

}  // namespace uniproc::cuda
