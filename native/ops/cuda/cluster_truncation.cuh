// min-p, top-k and top-p of one row by a cluster of blocks (Hopper and later); for
// truncate_cluster.cu.
//
// Few tokens of a row have a noticeable probability. Each block lists those of its share of the row
// in shared memory and only tallies the others. The cut is then found as in truncate.cu, by a
// histogram and exactly among the tokens of one bin: the blocks read each other's histograms and
// exchange the bin's tokens through distributed shared memory. A bin with too many tokens for that,
// as of equal logits, is divided by a second histogram over the keys in it.
#pragma once

#include <cooperative_groups.h>

#include <cfloat>
#include <cstdint>

#include "ops/cuda/device_math.cuh"
#include "ops/cuda/draw.cuh"
#include "ops/cuda/sampling.cuh"
#include "ops/cuda/truncation.cuh"

namespace uniproc::cuda {

// Namespace of one kernel's parts.
namespace cluster_truncation {

constexpr int kThreads = 1024;
constexpr int kMaxBlocks = 16;
constexpr int kBinBits = 7;
constexpr int kBins = 1 << kBinBits;
constexpr int kReaders = kThreads / kBins;  // threads that read a bin of different blocks
constexpr int kBinsPerLane = kBins / kWarpSize;
constexpr int kListSize = 256;     // tokens of a bin
constexpr int kMaxTokens = 16384;  // tokens that a block lists
constexpr int kLoads = 2;          // a thread's, in flight

struct Shared {
  // Read by other blocks between two cluster barriers: this block's histogram, and the largest key
  // of its tokens in a bin with the inverse of the smallest.
  uint32_t counts[kBins];
  uint32_t lowMasses[kBins];   // the lower 32 bits of each bin's mass
  uint32_t highMasses[kBins];  // the upper 32 bits
  Key greatest;
  Key leastInverted;
  // Written by other blocks: the row's tokens in the bins of the first and second cut, and, in the
  // first block, every block's best token.
  Key keys[2][kListSize];
  Key bests[kMaxBlocks];

  Key tokens[kMaxTokens];
  uint32_t numTokens;  // above kMaxTokens: not all are listed
  uint32_t listSizes[2];
  uint32_t blockCounts[kMaxBlocks][kBins];
  Mass readMasses[kReaders][kBins];
  alignas(16) uint32_t rowCounts[kBins];
  alignas(16) Mass rowMasses[kBins];
  Mass masses[kListSize];  // of keys
  Tally total;
  int32_t bin;
  Tally before;
  Key cut;
  Tally kept;
  Key keyScratch[kThreads / kWarpSize];
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace cg = cooperative_groups;

__device__ inline void clearBins(Shared& shared) {
  if (threadIdx.x < kBins) {
    shared.counts[threadIdx.x] = shared.lowMasses[threadIdx.x] = shared.highMasses[threadIdx.x] = 0;
  }
}

// Sums masses below 2^52 over a warp.
__device__ inline Mass warpSumMass(Mass mass) {
  constexpr int kBits = 25;
  const Mass low = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(mass) & ((1u << kBits) - 1));
  const Mass high = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(mass >> kBits));
  return low + (high << kBits);
}

// Every thread of every block must call every method in the same order; all get the same results.
// shared's bins, numTokens and listSizes must be 0.
class Truncation {
 public:
  // scaled [vocabSize]; tokens below `least`, which is finite, are ignored. `most` and `smallest`
  // are the row's largest and smallest logits. The bins span `range` from the largest.
  __device__ Truncation(const float* scaled, int32_t vocabSize, float least, float most,
                        float smallest, float range, bool withMass, Shared& shared)
      : scaled_(scaled),
        vocabSize_(vocabSize),
        least_(least),
        most_(most),
        binsPerUnit_(binsPerUnit(kBins, most, fmaxf(smallest, least), range)),
        withMass_(withMass),
        shared_(shared) {}

  // Leaves out of the list what is certainly not among the k most probable tokens: each block lists
  // up to the bin with which k of its threads have a token.
  __device__ void limitTo(uint32_t k) {
    float most = -INFINITY;
    forEachChunk([&](const float (&logits)[kLoads][kGroupSize], int32_t) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) most = fmaxf(most, logits[i][e]);
      }
    });
    if (most >= least_) atomicAdd(shared_.counts + binOf(most), 1u);
    __syncthreads();
    if (threadIdx.x < kWarpSize) {
      uint32_t counts[kBinsPerLane];
      uint32_t own = 0;
      for (int i = 0; i < kBinsPerLane; ++i) own += counts[i] = shared_.counts[ownBin(i)];
      uint32_t upTo = inclusiveSum(own) - own;
      int bin = kBins - 1;
      for (int i = kBinsPerLane - 1; i >= 0; --i) {
        uint32_t with = upTo;
        for (int j = 0; j <= i; ++j) with += counts[j];
        if (with >= k) bin = ownBin(i);
      }
      bin = __reduce_min_sync(kAllLanes, bin);
      if (threadIdx.x == 0) shared_.bin = bin;
    }
    __syncthreads();
    farFrom_ = fminf(static_cast<float>(shared_.bin + 1), farFrom_);
    clearBins(shared_);
    __syncthreads();
  }

  // Lists and tallies the row's tokens. Without withMass the mass is 0.
  __device__ Tally tallyRow() {
    // Whether every mass beyond the listed tokens is below 2^32, which is converted faster.
    const bool hasSmallMasses = binsPerUnit_ > 0 && farFrom_ / binsPerUnit_ > 9.0f;
    forEachChunk([&](const float (&logits)[kLoads][kGroupSize], int32_t first) {
      unsigned near[kLoads][kGroupSize];
      unsigned numNear = 0;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) {
          const float logit = logits[i][e];
          const bool isKept = logit >= least_;
          const bool isNear = isKept && !isFar(logit);
          const bool isTallied = isKept && !isNear;
          far_.count += isTallied;
          if (withMass_) {
            const float mass = isTallied ? expf(__fsub_rn(logit, most_)) * 0x1p44f : 0.0f;
            far_.mass += hasSmallMasses ? __float2uint_rn(mass) : __float2ull_rn(mass);
          }
          near[i][e] = __ballot_sync(kAllLanes, isNear);
          numNear += __popc(near[i][e]);
        }
      }
      if (numNear == 0) return;
      const unsigned lane = threadIdx.x % kWarpSize;
      unsigned place = 0;
      if (lane == 0) place = atomicAdd(&shared_.numTokens, numNear);
      place = __shfl_sync(kAllLanes, place, 0);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) {
          const unsigned own = place + __popc(near[i][e] & ((1u << lane) - 1));
          if (near[i][e] >> lane & 1 && own < kMaxTokens) {
            shared_.tokens[own] = keyOf(logits[i][e], first + i * stride() + e);
          }
          place += __popc(near[i][e]);
        }
      }
    });
    far_ = {__reduce_add_sync(kAllLanes, far_.count), warpSumMass(far_.mass)};
    __syncthreads();
    return fillBins();
  }

  // Returns the cut of the smallest set of most probable tokens that reaches the target, and its
  // tally. The target must be above 0, and the whole row must reach it.
  __device__ Key findCut(const Target& target, Tally* kept) {
    if (isDivided_) {
      cluster_.sync();  // other blocks may still read the bins
      clearBins(shared_);
      __syncthreads();
      fillBins();
    }
    Key greatest = kNoKey;  // the range of keys of the last bin that was divided
    Key leastInverted = kNoKey;
    int shift = -1;  // -1: bins of equal distance
    const auto isInBin = [&](Key key) {
      if (shift < 0) return binOf(logitOf(key)) == shared_.bin;
      return ~key <= leastInverted && key <= greatest &&
             static_cast<int>((greatest - key) >> shift) == shared_.bin;
    };
    findBin(target);
    if (static_cast<float>(shared_.bin) >= farFrom_) cutIsListed_ = false;
    while (shared_.rowCounts[shared_.bin] > kListSize) {
      const Tally before = shared_.before;
      shareRange(isInBin);
      findRange(&greatest, &leastInverted);
      const Key span = greatest - ~leastInverted;
      shift = max(0, 64 - __clzll(static_cast<long long>(span)) - kBinBits);
      divide(greatest, leastInverted, shift, before);
      findBin(target);
    }
    return search(target, exchange(isInBin), kept);
  }

  // Adds the block's tokens of at least the cut to each thread's draw. `wasCut`: a cut was found
  // here.
  __device__ void drawFrom(Key cut, bool wasCut, Draw& draw) const {
    if (wasCut && isListed()) {
      for (uint32_t i = threadIdx.x; i < shared_.numTokens; i += kThreads) {
        const Key key = shared_.tokens[i];
        if (key >= cut) draw.addToken(logitOf(key), tokenIdOf(key));
      }
      return;
    }
    forEachChunk([&](const float (&logits)[kLoads][kGroupSize], int32_t first) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        float kept[kGroupSize];
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) {
          const int32_t id = first + i * stride() + e;
          kept[e] = keyOf(logits[i][e], id) < cut ? -INFINITY : logits[i][e];
        }
        draw.add(kept, first + i * stride());
      }
    });
  }

 private:
  // Groups of four tokens are divided among the cluster's threads, then the next as many.
  __device__ int32_t stride() const {
    return static_cast<int32_t>(cluster_.num_blocks()) * kThreads * kGroupSize;
  }

  // Calls visit(logits, first id) for the thread's groups, kLoads at a time, which are stride()
  // ids apart; logits past the row's end are -inf. All lanes of a warp make the same calls.
  template <class Visit>
  __device__ void forEachChunk(Visit visit) const {
    const auto thread =
        static_cast<int32_t>(cluster_.block_rank()) * kThreads + static_cast<int32_t>(threadIdx.x);
    const int32_t lane = thread % kWarpSize;
    for (int32_t begin = (thread - lane) * kGroupSize; begin < vocabSize_;
         begin += kLoads * stride()) {
      const int32_t first = begin + lane * kGroupSize;
      float logits[kLoads][kGroupSize];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) logits[i][e] = -INFINITY;
        if (first + i * stride() < vocabSize_) {
          loadWidened<kGroupSize>(scaled_ + first + i * stride(), logits[i]);
        }
      }
      visit(logits, first);
    }
  }

  // Whether the list has every token of the bins that are not far, and those of the cuts so far.
  __device__ bool isListed() const { return cutIsListed_ && shared_.numTokens <= kMaxTokens; }

  // Calls visit(key) for the block's tokens of at least least_, or the listed ones if they include
  // the cut.
  template <class Visit>
  __device__ void forEachToken(Visit visit) const {
    if (isListed()) {
      for (uint32_t i = threadIdx.x; i < shared_.numTokens; i += kThreads) visit(shared_.tokens[i]);
      return;
    }
    forEachChunk([&](const float (&logits)[kLoads][kGroupSize], int32_t first) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
#pragma unroll
        for (int e = 0; e < kGroupSize; ++e) {
          if (logits[i][e] >= least_) visit(keyOf(logits[i][e], first + i * stride() + e));
        }
      }
    });
  }

  // More probable tokens never have a higher bin. All far tokens have the last.
  __device__ int binOf(float logit) const {
    return isFar(logit) ? kBins - 1 : static_cast<int>(distanceInBins(logit));
  }
  __device__ float distanceInBins(float logit) const {
    return __fmul_rn(fminf(__fsub_rn(most_, logit), FLT_MAX), binsPerUnit_);
  }
  __device__ bool isFar(float logit) const { return distanceInBins(logit) >= farFrom_; }

  __device__ void addToBin(int bin, Key key) {
    atomicAdd(shared_.counts + bin, 1u);
    if (withMass_) {
      addMass(shared_.lowMasses + bin, shared_.highMasses + bin, massOf(logitOf(key), most_));
    }
  }

  __device__ Tally fillBins() {
    const bool cutWasListed = cutIsListed_;
    cutIsListed_ = true;
    forEachToken([&](Key key) {
      if (!isFar(logitOf(key))) addToBin(binOf(logitOf(key)), key);
    });
    cutIsListed_ = cutWasListed;
    if (threadIdx.x % kWarpSize == 0 && far_.count > 0) {
      atomicAdd(shared_.counts + kBins - 1, far_.count);
      addMass(shared_.lowMasses + kBins - 1, shared_.highMasses + kBins - 1, far_.mass);
    }
    isDivided_ = false;
    return sumBins({});
  }

  // Sums the blocks' histograms. The first warp tallies the tokens before each lane's bins, after
  // `base`. Returns the total.
  __device__ Tally sumBins(const Tally& base) {
    cluster_.sync();
    const unsigned bin = threadIdx.x % kBins;
    const unsigned reader = threadIdx.x / kBins;
    const unsigned numBlocks = cluster_.num_blocks();
    Mass mass = 0;
#pragma unroll 2
    for (unsigned block = reader; block < numBlocks; block += kReaders) {
      const Shared* remote = cluster_.map_shared_rank(&shared_, block);
      shared_.blockCounts[block][bin] = remote->counts[bin];
      if (withMass_) mass += Mass{remote->highMasses[bin]} << 32 | remote->lowMasses[bin];
    }
    shared_.readMasses[reader][bin] = mass;
    __syncthreads();
    if (threadIdx.x < kBins) {
      uint32_t count = 0;
      mass = 0;
      for (unsigned block = 0; block < numBlocks; ++block) count += shared_.blockCounts[block][bin];
#pragma unroll
      for (int i = 0; i < kReaders; ++i) mass += shared_.readMasses[i][bin];
      shared_.rowCounts[bin] = count;
      shared_.rowMasses[bin] = mass;
    }
    __syncthreads();
    if (threadIdx.x < kWarpSize) {
      Tally own{};
#pragma unroll
      for (int i = 0; i < kBinsPerLane; ++i) own += rowTallyOf(ownBin(i));
      const Tally upTo{inclusiveSum(own.count), inclusiveSum(own.mass)};
      before_ = {upTo.count - own.count, upTo.mass - own.mass};
      before_ += base;
      if (threadIdx.x == kWarpSize - 1) shared_.total = upTo;
    }
    __syncthreads();
    return shared_.total;
  }

  // The sum over this lane and those before.
  template <class T>
  __device__ static T inclusiveSum(T value) {
#pragma unroll
    for (unsigned offset = 1; offset < kWarpSize; offset *= 2) {
      const T other = __shfl_up_sync(kAllLanes, value, offset);
      if (threadIdx.x % kWarpSize >= offset) value += other;
    }
    return value;
  }

  __device__ Tally rowTallyOf(int bin) const {
    return {shared_.rowCounts[bin], shared_.rowMasses[bin]};
  }
  __device__ static int ownBin(int i) { return static_cast<int>(threadIdx.x) * kBinsPerLane + i; }

  // Sets shared_.bin to the first bin up to which the tally reaches the target, and shared_.before
  // to the tally of the tokens before it.
  __device__ void findBin(const Target& target) {
    if (threadIdx.x < kWarpSize) {
      Tally before = before_;
#pragma unroll
      for (int i = 0; i < kBinsPerLane; ++i) {
        Tally with = before;
        with += rowTallyOf(ownBin(i));
        if (target.isReachedBy(with) && !target.isReachedBy(before)) {
          shared_.bin = ownBin(i);
          shared_.before = before;
        }
        before = with;
      }
    }
    __syncthreads();
  }

  // Publishes the range of keys of the block's tokens in the bin.
  template <class IsInBin>
  __device__ void shareRange(IsInBin isInBin) {
    Key greatest = kNoKey;
    Key leastInverted = kNoKey;
    forEachToken([&](Key key) {
      if (!isInBin(key)) return;
      greatest = max(greatest, key);
      leastInverted = max(leastInverted, ~key);
    });
    greatest = blockMax(greatest, kNoKey, shared_.keyScratch);
    leastInverted = blockMax(leastInverted, kNoKey, shared_.keyScratch);
    if (threadIdx.x == 0) {
      shared_.greatest = greatest;
      shared_.leastInverted = leastInverted;
    }
    cluster_.sync();
  }

  // The range of all blocks.
  __device__ void findRange(Key* greatest, Key* leastInverted) {
    *greatest = *leastInverted = kNoKey;
    for (unsigned block = 0; block < cluster_.num_blocks(); ++block) {
      const Shared* remote = cluster_.map_shared_rank(&shared_, block);
      *greatest = max(*greatest, remote->greatest);
      *leastInverted = max(*leastInverted, remote->leastInverted);
    }
  }

  // Fills the bins with the tokens in the range of keys, 2^shift keys in each.
  __device__ void divide(Key greatest, Key leastInverted, int shift, const Tally& before) {
    clearBins(shared_);
    __syncthreads();
    forEachToken([&](Key key) {
      if (~key > leastInverted || key > greatest) return;
      addToBin(static_cast<int>((greatest - key) >> shift), key);
    });
    isDivided_ = true;
    sumBins(before);
  }

  // Copies the row's tokens in the bin to shared_.keys and masses of each block; returns the keys.
  // Each block writes after the tokens of the blocks before it.
  template <class IsInBin>
  __device__ const Key* exchange(IsInBin isInBin) {
    const unsigned list = numLists_++ % 2;
    const unsigned numBlocks = cluster_.num_blocks();
    const unsigned lane = threadIdx.x % kWarpSize;
    const uint32_t begin = __reduce_add_sync(
        kAllLanes, lane < cluster_.block_rank() ? shared_.blockCounts[lane][shared_.bin] : 0);
    forEachToken([&](Key key) {
      if (!isInBin(key)) return;
      const uint32_t place = begin + atomicAdd(shared_.listSizes + list, 1u);
      for (unsigned block = 0; block < numBlocks; ++block) {
        cluster_.map_shared_rank(&shared_, block)->keys[list][place] = key;
      }
    });
    cluster_.sync();
    const auto size = static_cast<int>(shared_.rowCounts[shared_.bin]);
    if (withMass_) {
      for (auto i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
        shared_.masses[i] = massOf(logitOf(shared_.keys[list][i]), most_);
      }
      __syncthreads();
    }
    return shared_.keys[list];
  }

  // The cut among the keys of the bin. Several adjacent threads tally the tokens above each token.
  __device__ Key search(const Target& target, const Key* keys, Tally* kept) {
    static_assert(kListSize <= kThreads);
    const auto size = static_cast<int>(shared_.rowCounts[shared_.bin]);
    int perToken = kWarpSize;
    while (perToken > 1 && perToken * size > kThreads) perToken /= 2;
    const auto thread = static_cast<int>(threadIdx.x);
    const int token = thread / perToken;
    const Key key = token < size ? keys[token] : ~kNoKey;
    Tally above{};
    for (int i = thread % perToken; i < size; i += perToken) {
      if (keys[i] > key) above += {1, withMass_ ? shared_.masses[i] : 0};
    }
    for (int offset = perToken / 2; offset > 0; offset /= 2) {
      above += {__shfl_xor_sync(kAllLanes, above.count, offset),
                __shfl_xor_sync(kAllLanes, above.mass, offset)};
    }
    if (token < size) {
      above += shared_.before;
      Tally with = above;
      with += {1, withMass_ ? shared_.masses[token] : 0};
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
  float farFrom_ = kBins - 1;  // distance in bins from which tokens are not listed
  bool withMass_;
  bool cutIsListed_ = true;
  bool isDivided_ = false;  // the bins are a division of one bin
  unsigned numLists_ = 0;
  Tally far_{};     // this warp's tokens that are not listed
  Tally before_{};  // in the first warp: the tokens before the lane's bins
  Shared& shared_;
};

#endif

}  // namespace cluster_truncation
}  // namespace uniproc::cuda
