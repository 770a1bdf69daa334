// min-p, top-k and top-p of truncated rows and the draw, each row by a cluster of blocks (Hopper
// and later). Finds the same cuts as truncate.cu, hence samples the same tokens.
//
// A row's cut is found as in truncate.cu, by a histogram and then exactly among the tokens of one
// bin, but each block does so for its share of the row: the blocks sum their histograms through
// distributed shared memory, each a range of bins, and all get the sum. A bin with too many tokens
// for a list, as of equal logits, is divided by a second histogram over the keys in it.
#include <cooperative_groups.h>

#include <cfloat>
#include <cstdint>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/draw.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sampling.cuh"
#include "ops/cuda/truncation.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBins = kThreads;  // one per thread
// Larger clusters than 8 blocks must be allowed for a kernel.
constexpr int kMaxBlocks = 16;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace cg = cooperative_groups;

struct Bins {
  uint32_t counts[kBins];
  uint32_t lowMasses[kBins];   // the lower 32 bits of each bin's mass
  uint32_t highMasses[kBins];  // the upper 32 bits
};

constexpr int kListSize = sizeof(Bins) / 2 / sizeof(Key);

// The keys of a block's tokens in a range of keys.
struct KeyRange {
  Key greatest;
  Key leastInverted;
};

struct Shared {
  // This block's histogram, or the lists of its tokens in the bins of the first and second cut.
  // Other blocks read it after a cluster barrier, and it is used anew only after another one.
  union {
    Bins bins;
    Key lists[2][kListSize];
  };
  uint32_t listSizes[2];
  KeyRange range;
  // The row's histogram: written by all blocks of the cluster.
  uint32_t rowCounts[kBins];
  Mass rowMasses[kBins];
  Key bests[kMaxBlocks];  // of the first block: every block's best

  // The row's tokens of one bin, the same in every block.
  Key keys[kListSize];
  Mass masses[kListSize];

  int32_t bin;
  Tally before;
  Key cut;
  Tally kept;
  uint32_t countScratch[kWarps];
  Mass massScratch[kWarps];
  Key keyScratch[kWarps];
};

__device__ void clearBins(Shared& shared) {
  shared.bins.counts[threadIdx.x] = 0;
  shared.bins.lowMasses[threadIdx.x] = 0;
  shared.bins.highMasses[threadIdx.x] = 0;
  if (threadIdx.x < 2) shared.listSizes[threadIdx.x] = 0;
  __syncthreads();
}

// Truncates one row with one cluster. Every thread of every block must call every method; all get
// the same results.
class ClusterTruncation {
 public:
  // scaled [vocabSize]; tokens below `least`, which is finite, are ignored. `most` and `smallest`
  // are the row's largest and smallest logits. Tokens more than `range` below the largest share
  // the last bin.
  __device__ ClusterTruncation(const float* scaled, int32_t vocabSize, float least, float most,
                               float smallest, float range, bool withMass, Shared& shared)
      : scaled_(scaled),
        vocabSize_(vocabSize),
        least_(least),
        most_(most),
        binsPerUnit_(binsPerUnit(kBins, most, fmaxf(smallest, least), range)),
        withMass_(withMass),
        shared_(shared) {}

  // Tallies the row into bins that are clear. Without withMass its mass is 0.
  __device__ Tally fillBins() {
    Tally far{};  // the last bin has most tokens: adding each to shared memory would be slow
    forEachToken([&](float logit, int32_t) {
      const int bin = binOf(logit);
      const Mass mass = withMass_ ? massOf(logit, most_) : 0;
      if (bin == kBins - 1) {
        far += {1, mass};
      } else {
        addToBin(bin, mass);
      }
    });
    far = {warpSum(far.count), warpSum(far.mass)};
    if (threadIdx.x % kWarpSize == 0 && far.count > 0) {
      atomicAdd(shared_.bins.counts + kBins - 1, far.count);
      addMass(shared_.bins.lowMasses + kBins - 1, shared_.bins.highMasses + kBins - 1, far.mass);
    }
    isDivided_ = false;
    return sumBins({});
  }

  // Returns the cut of the smallest set of most probable tokens that reaches the target, and its
  // tally. The target must be above 0, and the whole row must reach it.
  __device__ Key findCut(const Target& target, Tally* kept) {
    if (isDivided_) {
      cluster_.sync();  // other blocks may still read the list in the bins' memory
      clearBins(shared_);
      fillBins();
    }
    KeyRange keys{};  // the tokens of the last bin that was divided
    int shift = -1;   // -1: bins of equal distance
    const auto isInBin = [&](float logit, int32_t id) {
      if (shift < 0) return binOf(logit) == shared_.bin;
      const Key key = keyOf(logit, id);
      return ~key <= keys.leastInverted && key <= keys.greatest &&
             static_cast<int>((keys.greatest - key) >> shift) == shared_.bin;
    };
    findBin(target);
    while (shared_.rowCounts[shared_.bin] > kListSize) {
      const Tally before = shared_.before;
      keys = rangeOf(isInBin);
      const Key span = keys.greatest - ~keys.leastInverted;
      shift = max(0, 64 - __clzll(static_cast<long long>(span)) - kBinBits);
      divide(keys, shift, before);
      findBin(target);
    }
    return search(target, joinLists(isInBin), kept);
  }

 private:
  static constexpr int kBinBits = 10;
  static_assert(kBins == 1 << kBinBits);

  // Calls visit(logit, id) for the block's tokens of at least least_, divided among its threads.
  template <class Visit>
  __device__ void forEachToken(Visit visit) const {
    constexpr int kLoads = 2;  // in flight
    const auto stride = static_cast<int32_t>(cluster_.num_threads()) * kGroupSize;
    const auto first = static_cast<int32_t>(cluster_.thread_rank()) * kGroupSize;
    for (int32_t begin = first; begin < vocabSize_; begin += kLoads * stride) {
      float logits[kLoads][kGroupSize];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) logits[i][e] = -INFINITY;
        const int32_t id = begin + i * stride;
        if (id < vocabSize_) loadWidened<kGroupSize>(scaled_ + id, logits[i]);
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) {
          if (logits[i][e] >= least_) visit(logits[i][e], begin + i * stride + e);
        }
      }
    }
  }

  __device__ int binOf(float logit) const {
    return binOfDistance(kBins, most_, logit, binsPerUnit_);
  }

  __device__ void addToBin(int bin, Mass mass) {
    atomicAdd(shared_.bins.counts + bin, 1u);
    if (withMass_) addMass(shared_.bins.lowMasses + bin, shared_.bins.highMasses + bin, mass);
  }

  // Sums the blocks' histograms, then tallies the bins before each thread's own, after the `base`.
  // Returns the total.
  __device__ Tally sumBins(const Tally& base) {
    cluster_.sync();
    // Adjacent threads read a bin from different blocks and write its sum to different ones.
    const unsigned numBlocks = cluster_.num_blocks();
    const unsigned other = threadIdx.x % numBlocks;
    const unsigned bin = (cluster_.block_rank() * kBins + threadIdx.x) / numBlocks;
    const Bins& from = cluster_.map_shared_rank(&shared_, other)->bins;
    Tally sum{from.counts[bin], Mass{from.highMasses[bin]} << 32 | from.lowMasses[bin]};
    for (unsigned offset = 1; offset < numBlocks; offset *= 2) {
      sum += {__shfl_xor_sync(kAllLanes, sum.count, offset),
              __shfl_xor_sync(kAllLanes, sum.mass, offset)};
    }
    Shared* to = cluster_.map_shared_rank(&shared_, other);
    to->rowCounts[bin] = sum.count;
    to->rowMasses[bin] = sum.mass;
    cluster_.sync();
    return tallyBefore(base);
  }

  __device__ Tally tallyBefore(const Tally& base) {
    const unsigned warp = threadIdx.x / kWarpSize;
    const unsigned lane = threadIdx.x % kWarpSize;
    const Tally own{shared_.rowCounts[threadIdx.x], shared_.rowMasses[threadIdx.x]};
    Tally upTo = own;
#pragma unroll
    for (unsigned offset = 1; offset < kWarpSize; offset *= 2) {
      const Tally other{__shfl_up_sync(kAllLanes, upTo.count, offset),
                        __shfl_up_sync(kAllLanes, upTo.mass, offset)};
      if (lane >= offset) upTo += other;
    }
    if (lane == kWarpSize - 1) {
      shared_.countScratch[warp] = upTo.count;
      shared_.massScratch[warp] = upTo.mass;
    }
    __syncthreads();
    // Every warp sums the warps before it, and all.
    static_assert(kWarps == kWarpSize);
    const Tally ofWarp{shared_.countScratch[lane], shared_.massScratch[lane]};
    const Tally earlier = lane < warp ? ofWarp : Tally{};
    before_ = {upTo.count - own.count, upTo.mass - own.mass};
    before_ += {warpSum(earlier.count), warpSum(earlier.mass)};
    before_ += base;
    return {warpSum(ofWarp.count), warpSum(ofWarp.mass)};
  }

  // Sets shared_.bin to the first bin up to which the tally reaches the target, and shared_.before
  // to the tally of the tokens before it.
  __device__ void findBin(const Target& target) {
    Tally with = before_;
    with += {shared_.rowCounts[threadIdx.x], shared_.rowMasses[threadIdx.x]};
    if (target.isReachedBy(with) && !target.isReachedBy(before_)) {
      shared_.bin = static_cast<int32_t>(threadIdx.x);
      shared_.before = before_;
    }
    __syncthreads();
  }

  // The keys of the row's tokens in the bin.
  template <class IsInBin>
  __device__ KeyRange rangeOf(IsInBin isInBin) {
    KeyRange own{kNoKey, kNoKey};
    forEachToken([&](float logit, int32_t id) {
      if (!isInBin(logit, id)) return;
      const Key key = keyOf(logit, id);
      own = {max(own.greatest, key), max(own.leastInverted, ~key)};
    });
    own.greatest = blockMax(own.greatest, kNoKey, shared_.keyScratch);
    own.leastInverted = blockMax(own.leastInverted, kNoKey, shared_.keyScratch);
    if (threadIdx.x == 0) shared_.range = own;
    cluster_.sync();
    KeyRange all{kNoKey, kNoKey};
    for (unsigned block = 0; block < cluster_.num_blocks(); ++block) {
      const KeyRange& other = cluster_.map_shared_rank(&shared_, block)->range;
      all = {max(all.greatest, other.greatest), max(all.leastInverted, other.leastInverted)};
    }
    return all;
  }

  // Fills the bins with the tokens in the range of keys, 2^shift keys in each.
  __device__ void divide(const KeyRange& keys, int shift, const Tally& before) {
    clearBins(shared_);
    forEachToken([&](float logit, int32_t id) {
      const Key key = keyOf(logit, id);
      if (~key > keys.leastInverted || key > keys.greatest) return;
      addToBin(static_cast<int>((keys.greatest - key) >> shift),
               withMass_ ? massOf(logit, most_) : 0);
    });
    sumBins(before);
    isDivided_ = true;
  }

  // Copies the row's tokens in the bin to shared_.keys and masses of each block; returns their
  // number, at most kListSize.
  template <class IsInBin>
  __device__ int joinLists(IsInBin isInBin) {
    const unsigned list = numLists_++ % 2;
    forEachToken([&](float logit, int32_t id) {
      if (!isInBin(logit, id)) return;
      shared_.lists[list][atomicAdd(shared_.listSizes + list, 1u)] = keyOf(logit, id);
    });
    cluster_.sync();
    const unsigned numBlocks = cluster_.num_blocks();
    const unsigned lane = threadIdx.x % kWarpSize;
    const unsigned warp = threadIdx.x / kWarpSize;
    const unsigned block = warp % numBlocks;
    const uint32_t size =
        lane < numBlocks ? cluster_.map_shared_rank(&shared_, lane)->listSizes[list] : 0;
    const uint32_t begin = warpSum(lane < block ? size : 0);
    const uint32_t total = warpSum(size);
    const uint32_t own = __shfl_sync(kAllLanes, size, static_cast<int>(block));
    const Key* from = cluster_.map_shared_rank(&shared_, block)->lists[list];
    const unsigned stride = kWarps / numBlocks * kWarpSize;
    for (uint32_t i = warp / numBlocks * kWarpSize + lane; i < own; i += stride) {
      const Key key = from[i];
      shared_.keys[begin + i] = key;
      shared_.masses[begin + i] = massOf(logitOf(key), most_);
    }
    __syncthreads();
    return static_cast<int>(total);
  }

  // The cut among the `size` tokens of the bin. Several adjacent threads tally the tokens above
  // each token.
  __device__ Key search(const Target& target, int size, Tally* kept) {
    int perToken = kWarpSize;
    while (perToken > 1 && perToken * size > kThreads) perToken /= 2;
    const auto thread = static_cast<int>(threadIdx.x);
    const int token = thread / perToken;
    const Key key = token < size ? shared_.keys[token] : ~kNoKey;
    Tally above{};
    for (int i = thread % perToken; i < size; i += perToken) {
      if (shared_.keys[i] > key) above += {1, shared_.masses[i]};
    }
    for (int offset = perToken / 2; offset > 0; offset /= 2) {
      above += {__shfl_xor_sync(kAllLanes, above.count, offset),
                __shfl_xor_sync(kAllLanes, above.mass, offset)};
    }
    above += shared_.before;
    if (token < size) {
      Tally with = above;
      with += {1, shared_.masses[token]};
      if (target.isReachedBy(with) && !target.isReachedBy(above)) {
        shared_.cut = key;
        shared_.kept = with;
      }
    }
    __syncthreads();
    *kept = shared_.kept;
    return shared_.cut;
  }

  const cg::cluster_group cluster_ = cg::this_cluster();
  const float* scaled_;
  int32_t vocabSize_;
  float least_;
  float most_;
  float binsPerUnit_;
  bool withMass_;
  bool isDivided_ = false;  // the bins are a division of one bin
  unsigned numLists_ = 0;
  Tally before_{};  // the tokens before the thread's bin
  Shared& shared_;
};

// The distance from the largest logit that the bins span. Only speed depends on it. The tokens
// further away than the returned distance have less than a quarter of the mass that top-p drops,
// so the cut is not among them.
__device__ float rangeFor(float topP, bool topK, int32_t vocabSize) {
  const float dropped = 1.0f - topP;
  if (topK || !(dropped > 0.0f)) return kBinnedRange;
  return fminf(kBinnedRange, logf(4.0f * static_cast<float>(vocabSize) / dropped));
}

// The thread's best token of at least the cut.
__device__ Key drawAbove(Key cut, const SamplingParams& params, int32_t position,
                         const float* scaled, int32_t vocabSize, float most) {
  const cg::cluster_group cluster = cg::this_cluster();
  const auto stride = static_cast<int32_t>(cluster.num_threads()) * kGroupSize;
  Draw draw{params.seed, position, most + kMinGumbel};
  for (auto id = static_cast<int32_t>(cluster.thread_rank()) * kGroupSize; id < vocabSize;
       id += stride) {
    float values[kGroupSize];
    loadWidened<kGroupSize>(scaled + id, values);
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      if (keyOf(values[e], id + e) < cut) values[e] = -INFINITY;
    }
    draw.add(values, id);
  }
  return draw.best();
}

#endif

// Ends the truncated rows of a batch. Grid: (cluster size, count), one cluster per row, whose
// threads divide the row in groups of 4 tokens; clusters of other rows return at once. Reads scaled
// from L2 once and then from L1, once for the draw and twice more for top-p or top-k, three times
// for both. Bound by latency for few rows: 4 cluster barriers for top-p, 5 with top-k.
__global__ void __launch_bounds__(kThreads)
    drawTruncatedRow(int32_t vocabSize, const int32_t* slots, RequestTable requests,
                     SampledTokens sampled, SamplerWorkspace workspace) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __shared__ Shared shared;
  const cg::cluster_group cluster = cg::this_cluster();
  const auto row = static_cast<int64_t>(blockIdx.y);
  // The kernel before, scanParts, writes none of this for a truncated row.
  const int64_t slot = slots[row];
  const SamplingParams params = slot < 0 ? SamplingParams{} : requests.sampling[slot];
  const int32_t numTokens = slot < 0 ? 0 : requests.numTokens[slot];
  clearBins(shared);
  waitForPrevious();
  if (slot < 0 || !isTruncated(params, vocabSize)) return;

  float most = -INFINITY;
  float smallest = INFINITY;
  for (auto i = static_cast<int32_t>(threadIdx.x % kWarpSize); i < workspace.numParts;
       i += kWarpSize) {
    most = fmaxf(most, workspace.maxima[row * workspace.numParts + i]);
    smallest = fminf(smallest, workspace.minima[row * workspace.numParts + i]);
  }
  most = warpMax(most);
  smallest = -warpMax(-smallest);

  const float* scaled = workspace.scaled + row * workspace.scaledWidth;
  const float least = leastKept(params, most);
  Key cut = keyOf(least, INT32_MAX);
  const bool topK = hasTopK(params, vocabSize);
  const bool topP = hasTopP(params);
  if (most > -INFINITY && (topK || topP)) {
    ClusterTruncation truncation(scaled, vocabSize, least, most, smallest,
                                 rangeFor(params.topP, topK, vocabSize), topP, shared);
    Tally kept = truncation.fillBins();
    const auto k = static_cast<uint32_t>(params.topK);
    if (topK && kept.count > k) cut = max(cut, truncation.findCut({k, 0}, &kept));
    if (topP) cut = max(cut, truncation.findCut({0, massToKeep(params.topP, kept.mass)}, &kept));
  }
  const Key best = blockMax(drawAbove(cut, params, numTokens, scaled, vocabSize, most), kNoKey,
                            shared.keyScratch);
  if (!(most > -INFINITY && (topK || topP))) cluster.sync();  // the first block has started
  if (threadIdx.x == 0) cluster.map_shared_rank(&shared, 0)->bests[cluster.block_rank()] = best;
  cluster.sync();
  if (cluster.block_rank() != 0 || threadIdx.x >= kWarpSize) return;
  const Key rowBest = threadIdx.x < cluster.num_blocks() ? shared.bests[threadIdx.x] : kNoKey;
  finishRow(rowBest, row, slot, numTokens, requests, workspace, sampled);
#endif
}

// Blocks in a row's cluster, a power of two: more for fewer rows, as long as all rows' blocks can
// be resident at once.
unsigned clusterSize(int32_t count, unsigned largest) {
  unsigned size = largest;
  while (size > 1 && size * static_cast<unsigned>(count) > 128) size /= 2;
  return size;
}

// The largest cluster of the kernel that this thread's device can run, at most kMaxBlocks; 0 if it
// cannot run clusters.
unsigned askDevice() {
  if (!kernelsWait()) return 0;  // compiled for GPUs without clusters
  check(cudaFuncSetAttribute(drawTruncatedRow, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cudaFuncSetAttribute");
  for (unsigned size = kMaxBlocks; size > 1; size /= 2) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {size, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size);
    config.blockDim = dim3(kThreads);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int numClusters = 0;
    if (cudaOccupancyMaxActiveClusters(&numClusters, drawTruncatedRow, &config) == cudaSuccess &&
        numClusters > 0) {
      return size;
    }
    static_cast<void>(cudaGetLastError());  // clear the error: a smaller cluster may fit
  }
  return 0;
}

unsigned largestCluster() {
  thread_local const unsigned size = askDevice();
  return size;
}

}  // namespace

bool canTruncateInClusters() { return largestCluster() > 0; }

void truncateAndDraw(int32_t count, int32_t vocabSize, const int32_t* slots,
                     const RequestTable& requests, const SampledTokens& sampled,
                     const SamplerWorkspace& workspace, cudaStream_t stream) {
  const unsigned size = clusterSize(count, largestCluster());
  launchClusters(drawTruncatedRow, dim3(size, static_cast<unsigned>(count)), size, kThreads, 0,
                 stream, vocabSize, slots, requests, sampled, workspace);
}

}  // namespace uniproc::cuda
