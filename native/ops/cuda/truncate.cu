// min-p, top-k (Fan et al. 2018) and top-p (Holtzman et al. 2019) without sorting a row.
//
// These filters always keep the most probable tokens: all with a Key of at least some cut. The
// smallest sufficient set, by count k or probability share p, is found in two steps: a histogram
// over the logits gives the bin that contains the cut, a binary search over that bin's keys the cut
// itself. Probabilities are summed as integers, so no result depends on the order of threads.
#include <cfloat>
#include <cstdint>

#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sampling.cuh"
#include "ops/cuda/truncation.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBins = 2048;
constexpr int kBinsPerThread = kBins / kThreads;
struct Shared {
  uint32_t counts[kBins];
  uint32_t lowMasses[kBins];   // the lower 32 bits of each bin's mass
  uint32_t highMasses[kBins];  // the upper 32 bits: 64-bit atomics on shared memory are slow
  Key list[kThreads];          // the tokens of a bin
  uint32_t listSize;
  int32_t bin;
  Tally before;
  uint32_t countScratch[kWarps];
  Mass massScratch[kWarps];
  Key keyScratch[kWarps];
  float scratch[kWarps];
};

// Truncates one row with one block. Every thread must call every method.
class Truncation {
 public:
  // scaled [vocabSize]; tokens below `least`, which is finite, are ignored. `most` and `smallest`
  // are the largest and smallest remaining logits.
  __device__ Truncation(const float* scaled, int32_t vocabSize, float least, float most,
                        float smallest, Shared& shared)
      : scaled_(scaled), vocabSize_(vocabSize), least_(least), most_(most), shared_(shared) {
    binsPerUnit_ = binsPerUnit(kBins, most, fmaxf(smallest, least), kBinnedRange);
  }

  // Tallies the row. Without withMass its mass is 0.
  __device__ Tally fillBins(bool withMass) {
    for (auto i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
      shared_.counts[i] = shared_.lowMasses[i] = shared_.highMasses[i] = 0;
    }
    __syncthreads();
    forEachToken([&](float logit, int32_t) {
      const int bin = binOf(logit);
      atomicAdd(shared_.counts + bin, 1u);
      if (withMass) addMass(shared_.lowMasses + bin, shared_.highMasses + bin, massOf(logit));
    });
    __syncthreads();
    Tally own{};
    for (int i = 0; i < kBinsPerThread; ++i) own += tallyOfBin(ownBin(i));
    return sumOf(own);
  }

  // Returns the cut of the smallest set of most probable tokens that reaches the target, and its
  // tally. The target must be above 0, and the whole row must reach it.
  __device__ Key findCut(const Target& target, Tally* kept) {
    findBin(target);
    const int bin = shared_.bin;
    const Tally before = shared_.before;
    const Tally inBin = tallyOfBin(bin);
    const bool isListed = inBin.count <= kThreads;

    // List the bin's tokens if they fit, and find their smallest and largest key.
    if (threadIdx.x == 0) shared_.listSize = 0;
    __syncthreads();
    Key greatest = kNoKey;
    Key leastInverted = kNoKey;
    forEachToken([&](float logit, int32_t id) {
      if (binOf(logit) != bin) return;
      const Key key = keyOf(logit, id);
      greatest = max(greatest, key);
      leastInverted = max(leastInverted, ~key);
      if (isListed) shared_.list[atomicAdd(&shared_.listSize, 1u)] = key;
    });
    greatest = blockMax(greatest, kNoKey, shared_.keyScratch);
    leastInverted = blockMax(leastInverted, kNoKey, shared_.keyScratch);
    const Key own = threadIdx.x < shared_.listSize ? shared_.list[threadIdx.x] : kNoKey;
    const Mass ownMass = own != kNoKey ? massOf(logitOf(own)) : 0;

    // Tally of all tokens up to this bin with at least that key.
    const auto tallyFrom = [&](Key key) {
      Tally tally{};
      if (isListed) {
        if (own >= key) tally = {1, ownMass};
      } else {
        forEachToken([&](float logit, int32_t id) {
          if (binOf(logit) == bin && keyOf(logit, id) >= key) tally += {1, massOf(logit)};
        });
      }
      tally = sumOf(tally);
      tally += before;
      return tally;
    };

    // Invariant: the set from `low` on is sufficient, the set from `high` on is not. With one token
    // between them, that token completes the set.
    Key low = ~leastInverted;
    Key high = greatest + 1;
    Tally fromLow = tallyFrom(low);
    Tally fromHigh = before;
    while (fromLow.count - fromHigh.count > 1 && high - low > 1) {
      const Key middle = low + (high - low) / 2;
      const Tally tally = tallyFrom(middle);
      if (target.isReachedBy(tally)) {
        low = middle;
        fromLow = tally;
      } else {
        high = middle;
        fromHigh = tally;
      }
    }
    *kept = fromLow;
    return low;
  }

 private:
  // Calls visit(logit, id) for tokens of at least least_, divided among the threads.
  template <class Visit>
  __device__ void forEachToken(Visit visit) const {
    constexpr int kLoads = 4;  // in flight
    constexpr int32_t kStride = kThreads * kGroupSize;
    const int32_t first = static_cast<int32_t>(threadIdx.x) * kGroupSize;
    for (int32_t begin = first; begin < vocabSize_; begin += kLoads * kStride) {
      float logits[kLoads][kGroupSize];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) logits[i][e] = -INFINITY;
        const int32_t id = begin + i * kStride;
        if (id < vocabSize_) loadWidened<kGroupSize>(scaled_ + id, logits[i]);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) {
          if (logits[i][e] >= least_) visit(logits[i][e], begin + i * kStride + e);
        }
      }
    }
  }

  __device__ int binOf(float logit) const {
    return binOfDistance(kBins, most_, logit, binsPerUnit_);
  }

  __device__ Mass massOf(float logit) const { return cuda::massOf(logit, most_); }

  __device__ static int ownBin(int i) { return static_cast<int>(threadIdx.x) * kBinsPerThread + i; }

  __device__ Tally tallyOfBin(int bin) const {
    return {shared_.counts[bin], Mass{shared_.highMasses[bin]} << 32 | shared_.lowMasses[bin]};
  }

  __device__ Tally sumOf(const Tally& own) {
    return {blockSum(own.count, shared_.countScratch), blockSum(own.mass, shared_.massScratch)};
  }

  // Sets shared_.bin to the first bin up to which the tally reaches the target, and shared_.before
  // to the tally of the bins before it.
  __device__ void findBin(const Target& target) {
    Tally own{};
    for (int i = 0; i < kBinsPerThread; ++i) own += tallyOfBin(ownBin(i));
    Tally before = sumBefore(own);
    for (int i = 0; i < kBinsPerThread; ++i) {
      Tally with = before;
      with += tallyOfBin(ownBin(i));
      if (target.isReachedBy(with) && !target.isReachedBy(before)) {
        shared_.bin = ownBin(i);
        shared_.before = before;
      }
      before = with;
    }
    __syncthreads();
  }

  // The sum over the threads before this one.
  __device__ Tally sumBefore(const Tally& own) {
    const unsigned warp = threadIdx.x / kWarpSize;
    const unsigned lane = threadIdx.x % kWarpSize;
    Tally upTo = own;
#pragma unroll
    for (unsigned offset = 1; offset < kWarpSize; offset *= 2) {
      const Tally other{__shfl_up_sync(kAllLanes, upTo.count, offset),
                        __shfl_up_sync(kAllLanes, upTo.mass, offset)};
      if (lane >= offset) upTo += other;
    }
    __syncthreads();
    if (lane == kWarpSize - 1) {
      shared_.countScratch[warp] = upTo.count;
      shared_.massScratch[warp] = upTo.mass;
    }
    __syncthreads();
    Tally before{upTo.count - own.count, upTo.mass - own.mass};
    for (unsigned i = 0; i < warp; ++i) {
      before += {shared_.countScratch[i], shared_.massScratch[i]};
    }
    return before;
  }

  const float* scaled_;
  int32_t vocabSize_;
  float least_;
  float most_;
  float binsPerUnit_;
  Shared& shared_;
};

// Computes workspace.cuts and rowMaxima [count]. Grid: one block per row; rows without truncation
// return at once. Reads scaled twice for top-k or top-p, three times for both, mostly from L2:
// bound by the load rate of one multiprocessor.
__global__ void __launch_bounds__(kThreads)
    findCuts(int32_t vocabSize, const int32_t* slots, RequestTable requests,
             SamplerWorkspace workspace) {
  __shared__ Shared shared;
  waitForPrevious();
  const auto row = static_cast<int64_t>(blockIdx.x);
  const int32_t slot = slots[row];
  if (slot < 0) return;
  const SamplingParams& params = requests.sampling[slot];
  if (!isTruncated(params, vocabSize)) return;

  float most = -INFINITY;
  float smallest = INFINITY;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < workspace.numParts; i += kThreads) {
    most = fmaxf(most, workspace.maxima[row * workspace.numParts + i]);
    smallest = fminf(smallest, workspace.minima[row * workspace.numParts + i]);
  }
  most = blockMax(most, -INFINITY, shared.scratch);
  smallest = -blockMax(-smallest, -INFINITY, shared.scratch);

  const float least = leastKept(params, most);
  Key cut = keyOf(least, INT32_MAX);
  const bool topK = hasTopK(params, vocabSize);
  const bool topP = hasTopP(params);
  if (most > -INFINITY && (topK || topP)) {
    Truncation truncation(workspace.scaled + row * workspace.scaledWidth, vocabSize, least, most,
                          smallest, shared);
    Tally kept = truncation.fillBins(topP);
    const auto k = static_cast<uint32_t>(params.topK);
    if (topK && kept.count > k) cut = max(cut, truncation.findCut({k, 0}, &kept));
    if (topP) {
      cut = max(cut, truncation.findCut({0, massToKeep(params.topP, kept.mass)}, &kept));
    }
  }
  if (threadIdx.x == 0) {
    workspace.cuts[row] = cut;
    workspace.rowMaxima[row] = most;
  }
}

}  // namespace

void truncate(int32_t count, int32_t vocabSize, const int32_t* slots, const RequestTable& requests,
              const SamplerWorkspace& workspace, cudaStream_t stream) {
  launch(findCuts, static_cast<unsigned>(count), kThreads, 0, stream, vocabSize, slots, requests,
         workspace);
}

}  // namespace uniproc::cuda
