// min-p, top-k and top-p of truncated rows and the draw, each row by a cluster of blocks (Hopper
// and later). Finds the same cuts as truncate.cu, hence samples the same tokens.
#include <cooperative_groups.h>

#include <array>
#include <cfloat>
#include <cstdint>

#include "ops/cuda/cluster_truncation.cuh"
#include "ops/cuda/draw.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sampling.cuh"
#include "ops/cuda/truncation.cuh"

namespace uniproc::cuda {
namespace {

using cluster_truncation::kThreads;

constexpr size_t kSharedBytes = sizeof(cluster_truncation::Shared);

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// The distance from the largest logit that the bins span. Only speed depends on it. The tokens
// further away than the returned distance have less than a quarter of the mass that top-p drops,
// so the cut is not among them.
__device__ float rangeFor(float topP, bool topK, int32_t vocabSize) {
  const float dropped = 1.0f - topP;
  if (topK || !(dropped > 0.0f)) return kBinnedRange;
  return fminf(kBinnedRange, logf(4.0f * static_cast<float>(vocabSize) / dropped));
}

#endif

// Ends the truncated rows of a batch. Grid: (cluster size, count), one cluster per row, whose
// threads divide the row in groups of 4 tokens; clusters of other rows return at once. Reads scaled
// once, mostly from L2, twice with top-k, and again for each pass if the listed tokens are too many
// for shared memory. Bound by latency for few rows: 3 cluster barriers for top-k or top-p, 4 for
// both, 1 for min-p.
__global__ void __launch_bounds__(kThreads)
    drawTruncatedRow(int32_t vocabSize, const int32_t* slots, RequestTable requests,
                     SampledTokens sampled, SamplerWorkspace workspace) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  namespace cg = cooperative_groups;
  extern __shared__ uint4 sharedMemory[];
  auto& shared = *reinterpret_cast<cluster_truncation::Shared*>(sharedMemory);
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.barrier_arrive();  // no block writes to another's shared memory before it has started
  const auto row = static_cast<int64_t>(blockIdx.y);
  // Written before the step's first kernel ended.
  const int64_t slot = slots[row];
  const SamplingParams params = slot < 0 ? SamplingParams{} : requests.sampling[slot];
  cluster_truncation::clearBins(shared);
  if (threadIdx.x == 0) shared.numTokens = shared.listSizes[0] = shared.listSizes[1] = 0;
  __syncthreads();
  waitForPrevious();
  if (slot < 0 || !isTruncated(params, vocabSize)) return cluster.barrier_wait();

  const int32_t numTokens = requests.numTokens[slot];
  float most = -INFINITY;
  float smallest = INFINITY;
  for (auto i = static_cast<int32_t>(threadIdx.x % kWarpSize); i < workspace.numParts;
       i += kWarpSize) {
    most = fmaxf(most, workspace.maxima[row * workspace.numParts + i]);
    smallest = fminf(smallest, workspace.minima[row * workspace.numParts + i]);
  }
  most = warpMax(most);
  smallest = -warpMax(-smallest);
  const bool endsRow = cluster.block_rank() == 0 && threadIdx.x < kWarpSize;
  RowEnd end;
  if (endsRow) end = RowEnd::load(row, workspace);
  cluster.barrier_wait();

  const float least = leastKept(params, most);
  Key cut = keyOf(least, INT32_MAX);
  const bool topK = hasTopK(params, vocabSize);
  const bool topP = hasTopP(params);
  cluster_truncation::Truncation truncation(workspace.scaled + row * workspace.scaledWidth,
                                            vocabSize, least, most, smallest,
                                            rangeFor(params.topP, topK, vocabSize), topP, shared);
  bool wasCut = false;
  if (most > -INFINITY && (topK || topP)) {
    const auto k = static_cast<uint32_t>(params.topK);
    if (topK) truncation.limitTo(k);
    Tally kept = truncation.tallyRow();
    const bool cutsK = topK && kept.count > k;
    if (cutsK) cut = max(cut, truncation.findCut({k, 0}, &kept));
    if (topP) cut = max(cut, truncation.findCut({0, massToKeep(params.topP, kept.mass)}, &kept));
    wasCut = cutsK || topP;
  }
  Draw draw{params.seed, numTokens, most + kMinGumbel};
  truncation.drawFrom(cut, wasCut, draw);
  const Key best = blockMax(draw.best(), kNoKey, shared.keyScratch);
  if (threadIdx.x == 0) cluster.map_shared_rank(&shared, 0)->bests[cluster.block_rank()] = best;
  cluster.sync();
  if (!endsRow) return;
  if (threadIdx.x < cluster.num_blocks()) end.best = max(end.best, shared.bests[threadIdx.x]);
  end.finish(row, slot, numTokens, requests, sampled);
#endif
}

// Clusters of 1, 2, 4, 8 and 16 blocks of the kernel that can be resident at once; all 0 on a
// device that cannot run it.
using ResidentClusters = std::array<int, 5>;
static_assert(cluster_truncation::kMaxBlocks == 16);

ResidentClusters askDevice() {
  ResidentClusters resident{};
  if (!kernelsWait()) return resident;  // compiled for GPUs without clusters
  const bool isAllowed =
      cudaFuncSetAttribute(drawTruncatedRow, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
          cudaSuccess &&
      cudaFuncSetAttribute(drawTruncatedRow, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kSharedBytes) == cudaSuccess;
  for (unsigned i = 0; isAllowed && i < resident.size(); ++i) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {1u << i, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1u << i);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kSharedBytes;
    config.attrs = &cluster;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&resident[i], drawTruncatedRow, &config) != cudaSuccess) {
      resident[i] = 0;
    }
  }
  static_cast<void>(cudaGetLastError());  // clear the error: the other path runs on every device
  return resident;
}

const ResidentClusters& residentClusters() {
  thread_local const ResidentClusters resident = askDevice();
  return resident;
}

// Blocks in a row's cluster: the most with which all rows are truncated at once, but two at least.
// Measured on an H200, 256 rows of 128,256 with top-p: 215 us by clusters of two, one after the
// other, 301 by single blocks.
unsigned clusterSize(int32_t count) {
  const ResidentClusters& resident = residentClusters();
  for (auto i = static_cast<unsigned>(resident.size()); --i > 1;) {
    if (resident[i] >= count) return 1u << i;
  }
  return resident[1] > 0 ? 2 : 1;
}

}  // namespace

bool canTruncateInClusters() { return residentClusters()[0] > 0; }

void truncateAndDraw(int32_t count, int32_t vocabSize, const int32_t* slots,
                     const RequestTable& requests, const SampledTokens& sampled,
                     const SamplerWorkspace& workspace, cudaStream_t stream) {
  const unsigned size = clusterSize(count);
  launchClusters(drawTruncatedRow, dim3(size, static_cast<unsigned>(count)), size, kThreads,
                 kSharedBytes, stream, vocabSize, slots, requests, sampled, workspace);
}

}  // namespace uniproc::cuda
