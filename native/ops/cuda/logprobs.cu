// Log probabilities and ranks of given tokens, and each row's most probable tokens.
#include <string>

#include "base/error.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/sampling.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = kPartThreads / kWarpSize;
constexpr int kRound = 32;             // keys that selectTop finds per round
constexpr int kMaxKeysPerThread = 32;  // input keys per thread

struct SelectScratch {
  Key bests[kPartThreads];
  Key list[kRound * kMaxKeysPerThread];
  int listSize;
  Key bound;
  Key ceiling;
};

// Calls emit(place, key) for the numTop largest of the n keys keyAt(0), keyAt(1), ..., with places
// from 0; key is kNoKey if there are fewer. n <= kPartThreads * kMaxKeysPerThread.
//
// The kRound-th largest of the per-thread maxima is a lower bound of the result. The keys above it
// form a short list, in which a key's place is the number of larger keys.
template <class KeyAt, class Emit>
__device__ void selectTop(int n, KeyAt keyAt, int numTop, SelectScratch& scratch, Emit emit) {
  const auto thread = static_cast<int>(threadIdx.x);
  Key ceiling = ~kNoKey;  // keys from here on are emitted
  for (int done = 0; done < numTop; done += kRound) {
    const int wanted = min(kRound, numTop - done);
    Key best = kNoKey;
    for (int i = thread; i < n; i += kPartThreads) {
      const Key key = keyAt(i);
      if (key < ceiling) best = max(best, key);
    }
    __syncthreads();  // the previous round is done with the scratch
    scratch.bests[thread] = best;
    if (thread == 0) {
      scratch.listSize = 0;
      scratch.bound = kNoKey;
      scratch.ceiling = kNoKey;
    }
    __syncthreads();
    int place = 0;
    for (int i = 0; i < kPartThreads; ++i) place += scratch.bests[i] > best;
    if (place == wanted - 1 && best != kNoKey) scratch.bound = best;
    __syncthreads();
    const Key bound = scratch.bound;
    for (int i = thread; i < n; i += kPartThreads) {
      const Key key = keyAt(i);
      if (key != kNoKey && key < ceiling && key >= bound) {
        scratch.list[atomicAdd(&scratch.listSize, 1)] = key;
      }
    }
    __syncthreads();
    const int size = scratch.listSize;
    for (int i = thread; i < size; i += kPartThreads) {
      const Key key = scratch.list[i];
      int above = 0;
      for (int other = 0; other < size; ++other) above += scratch.list[other] > key;
      if (above < wanted) emit(done + above, key);
      if (above == wanted - 1) scratch.ceiling = key;
    }
    for (int i = size + thread; i < wanted; i += kPartThreads) emit(done + i, kNoKey);
    __syncthreads();
    ceiling = scratch.ceiling;
  }
}

// The number of top tokens that each row requests, -1 for no logprobs.
struct LogprobRequests {
  const int32_t* slots;  // null: numTop for each row
  const SamplingParams* sampling;
  int32_t numTop;

  __device__ int32_t numTopOf(int64_t row, int32_t maxLogprobs) const {
    if (!slots) return min(numTop, maxLogprobs);
    const int32_t slot = slots[row];
    return slot < 0 ? -1 : min(sampling[slot].numLogprobs, maxLogprobs);
  }
};

// Run by the last block of a row: merges the parts' results of `workspace` into row `row` of out
// and, unless null, of numNans.
__device__ void mergeParts(float tokenLogit, int32_t tokenId, int64_t row, int32_t numTop,
                           int32_t* numNans, const Logprobs& out, const SamplerWorkspace& workspace,
                           SelectScratch& scratch) {
  __shared__ float maxScratch[kWarps];
  __shared__ double sumScratch[kWarps];
  __shared__ int32_t countScratch[kWarps];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int64_t first = row * workspace.numParts;
  float most = -INFINITY;
  for (int32_t i = thread; i < workspace.numParts; i += kPartThreads) {
    most = fmaxf(most, __ldcg(workspace.partMaxima + first + i));
  }
  most = blockMax(most, -INFINITY, maxScratch);
  double sum = 0;
  int32_t greater = 0;
  for (int32_t i = thread; i < workspace.numParts; i += kPartThreads) {
    const double partMost = __ldcg(workspace.partMaxima + first + i);
    const double partSum = __ldcg(workspace.partSums + first + i);
    if (partSum > 0) sum += partSum * exp(partMost - static_cast<double>(most));
    greater += __ldcg(workspace.partGreater + first + i);
  }
  const double logSum = log(blockSum(sum, sumScratch));
  greater = blockSum(greater, countScratch);
  const auto logprobOf = [&](float logit) {
    return logit == -INFINITY ? logit : static_cast<float>(double{logit - most} - logSum);
  };

  const int64_t outFirst = row * (1 + out.maxLogprobs);
  if (thread == 0) {
    out.tokenIds[outFirst] = tokenId;
    out.logprobs[outFirst] = logprobOf(tokenLogit);
    out.ranks[row] = 1 + greater;
  }
  if (numNans) {
    const int32_t nans = sumNans(workspace.partNans + first, workspace.numParts, countScratch);
    if (thread == 0) numNans[row] = nans;
  }
  const Key* partTops = workspace.partTops + first * workspace.maxLogprobs;
  const auto keyAt = [&](int i) {
    return __ldcg(partTops + int64_t{i / numTop} * workspace.maxLogprobs + i % numTop);
  };
  selectTop(workspace.numParts * numTop, keyAt, numTop, scratch, [&](int place, Key key) {
    out.tokenIds[outFirst + 1 + place] = key != kNoKey ? tokenIdOf(key) : -1;
    out.logprobs[outFirst + 1 + place] = key != kNoKey ? logprobOf(logitOf(key)) : -INFINITY;
  });
}

// Logprobs of tokenIds [count] under logits [count, vocabSize]. Each block computes a part's sum,
// counts and top tokens; the row's last block merges them. Grid: (numParts, count). Reads the
// logits once: bound by device memory for many rows, by the latency of the selections for few.
// Counting NaN is as cheap as in sampler.cu's scanParts.
template <bool kAligned>
__global__ void __launch_bounds__(kPartThreads)
    gatherParts(const float* logits, int32_t vocabSize, const int32_t* tokenIds,
                LogprobRequests requests, int32_t* numNans, Logprobs out,
                SamplerWorkspace workspace) {
  alignas(16) __shared__ float shared[kPartSize];
  __shared__ SelectScratch scratch;
  __shared__ float floatScratch[kWarps];
  __shared__ int32_t countScratch[kWarps];
  waitForPrevious();
  const auto row = static_cast<int64_t>(blockIdx.y);
  const auto part = static_cast<int32_t>(blockIdx.x);
  const int32_t numTop = requests.numTopOf(row, out.maxLogprobs);
  if (numTop < 0) return;
  const int32_t tokenId = tokenIds[row];
  const float tokenLogit = cleanLogit(logits[row * vocabSize + tokenId]);

  const int32_t begin = part * kPartSize;
  float values[kGroups][kGroupSize];
  int32_t nans = loadPart<kAligned>(logits + row * vocabSize, vocabSize, begin, values);
  float most = -INFINITY;
  int32_t greater = 0;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      most = fmaxf(most, values[j][e]);
      greater += values[j][e] > tokenLogit;
    }
    storeNarrowed(shared + groupOffset(j), values[j]);
  }
  most = blockMax(most, -INFINITY, floatScratch);
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      if (values[j][e] > -INFINITY) sum += expf(values[j][e] - most);
    }
  }
  sum = blockSum(sum, floatScratch);
  greater = blockSum(greater, countScratch);
  if (__syncthreads_or(nans)) nans = blockSum(nans, countScratch);
  const int64_t index = row * workspace.numParts + part;
  if (threadIdx.x == 0) {
    workspace.partNans[index] = nans;
    workspace.partMaxima[index] = most;
    workspace.partSums[index] = sum;
    workspace.partGreater[index] = greater;
  }
  Key* tops = workspace.partTops + index * workspace.maxLogprobs;
  const int32_t size = min(kPartSize, vocabSize - begin);
  const auto keyAt = [&](int i) { return keyOf(shared[i], begin + i); };
  selectTop(size, keyAt, numTop, scratch, [&](int place, Key key) { tops[place] = key; });
  if (!isLastBlock(workspace.arrivedLogprobs + row, gridDim.x)) return;
  mergeParts(tokenLogit, tokenId, row, numTop, numNans, out, workspace, scratch);
}

}  // namespace

void fillLogprobs(const float* logits, int32_t count, int32_t vocabSize, const int32_t* tokenIds,
                  const int32_t* slots, const SamplingParams* sampling, int32_t numTop,
                  int32_t* numNans, const Logprobs& out, const SamplerWorkspace& workspace,
                  cudaStream_t stream) {
  const int32_t mostKeys = kPartThreads * kMaxKeysPerThread;
  if (int64_t{workspace.numParts} * out.maxLogprobs > mostKeys) {
    throw Error("NOT_SUPPORTED", std::to_string(out.maxLogprobs) + " logprobs of a vocabulary of " +
                                     std::to_string(vocabSize) +
                                     " exceed the CUDA backend's maximum of " +
                                     std::to_string(mostKeys / workspace.numParts));
  }
  const dim3 grid(static_cast<unsigned>(workspace.numParts), static_cast<unsigned>(count));
  const auto gather = rowsAreAligned(logits, vocabSize) ? gatherParts<true> : gatherParts<false>;
  const LogprobRequests wanted{slots, sampling, numTop};
  launch(gather, grid, kPartThreads, 0, stream, logits, vocabSize, tokenIds, wanted, numNans, out,
         workspace);
}

}  // namespace uniproc::cuda
