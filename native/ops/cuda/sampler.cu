// Samples tokens from rows of logits. Three kernels run for every batch, so that a captured launch
// fits all requests; a fourth computes logprobs:
//
// - scanParts reads the logits once, applies the requests' parameters, and finishes greedy rows
//   and rows drawn from the whole vocabulary except for the comparison between a row's parts.
// - truncate finds the cuts of min-p, top-k and top-p in the other rows.
// - chooseTokens draws from what remains of those, compares the parts and appends the tokens.
//
// Blocks of rows without truncation, or without logprobs, return at once.
#include <type_traits>

#include "base/philox.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/logits_processors.cuh"
#include "ops/cuda/sampling.cuh"
#include "ops/logits.h"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = kPartThreads / kWarpSize;
// Resident blocks of scanParts per multiprocessor, limited by registers.
constexpr int kScanBlocks = 4;

// The smallest -log(-log(u)) of philox.h's uniform u: -log(-log(2^-24)) = -2.8116, rounded down.
constexpr float kMinGumbel = -2.82f;

// A draw by the Gumbel trick: the token with the highest logit + noise wins.
struct Draw {
  uint64_t seed;
  int32_t position;
  float leastScore;  // lower bound of the best score
  float bestScore = -INFINITY;
  int32_t bestId = 0;

  // Adds four adjacent tokens, the first id a multiple of 4. A thread must add its groups in
  // ascending order of ids, since the earlier token wins a tie.
  __device__ void add(const float (&logits)[kGroupSize], int32_t id) {
    const float most = fmaxf(fmaxf(logits[0], logits[1]), fmaxf(logits[2], logits[3])) + kMaxGumbel;
    if (most < leastScore || most <= bestScore) return;  // cannot win
    const PhiloxBlock block = samplingWords(seed, position, id / kGroupSize);
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      const float score = logits[e] - logf(-logf(uniform(block.words[e])));
      if (score > bestScore) {
        bestScore = score;
        bestId = id + e;
      }
    }
  }

  __device__ Key best() const { return bestScore > -INFINITY ? keyOf(bestScore, bestId) : kNoKey; }
};

// The thread's arg max, the lowest id on ties.
__device__ Key argMax(const float (&logits)[kGroups][kGroupSize], int32_t begin) {
  float most = -INFINITY;
  int32_t id = 0;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      if (logits[j][e] > most) {
        most = logits[j][e];
        id = begin + groupOffset(j) + e;
      }
    }
  }
  return most > -INFINITY ? keyOf(most, id) : kNoKey;
}

__device__ float largest(const float (&logits)[kGroups][kGroupSize]) {
  float most = -INFINITY;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) most = fmaxf(most, logits[j][e]);
  }
  return most;
}

__device__ float smallestFinite(const float (&logits)[kGroups][kGroupSize]) {
  float least = INFINITY;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      if (logits[j][e] > -INFINITY) least = fminf(least, logits[j][e]);
    }
  }
  return least;
}

__device__ SampledRequest requestOf(const RequestTable& requests, int64_t slot,
                                    const SamplingParams& params) {
  return {params, requests.tokenIds + slot * requests.maxModelLen, requests.numPromptTokens[slot],
          requests.numTokens[slot]};
}

// A slot's parameters in shared memory, loaded one word per thread while the logits are in flight.
struct SharedParams {
  static constexpr unsigned kWords = sizeof(SamplingParams) / sizeof(uint32_t);
  alignas(SamplingParams) uint32_t words[kWords];

  __device__ static uint32_t fetch(const SamplingParams& from) {
    return threadIdx.x < kWords ? reinterpret_cast<const uint32_t*>(&from)[threadIdx.x] : 0;
  }
  __device__ void put(uint32_t word) {
    if (threadIdx.x < kWords) words[threadIdx.x] = word;
  }
  __device__ const SamplingParams& get() const {
    return *reinterpret_cast<const SamplingParams*>(words);
  }
};
static_assert(sizeof(SamplingParams) % sizeof(uint32_t) == 0 &&
              SharedParams::kWords <= kPartThreads);

__device__ const int32_t* bitmaskOf(const int32_t* bitmask, int64_t row, int32_t vocabSize) {
  return bitmask ? bitmask + row * ((vocabSize + 31) / 32) : nullptr;
}

// logits [count, vocabSize] -> workspace.bests, bannedBests and partNans [count, numParts]. For
// truncated rows also scaled, maxima and minima; bests is then only set for parts without a
// possible token, to the lowest permitted one. Grid: (numParts, count). Reads the logits once, and
// with penalties the request's history once per part: bound by device memory, or by arithmetic for
// a draw from the whole vocabulary (10 rounds of Philox per 4 tokens, 2 logarithms per token).
//
// Counting NaN costs one comparison per logit, which is in a register, and 4 bytes written and read
// per 16 KiB part. The block sums the counts only if a thread has found a NaN, which the barrier
// after the load reports.
template <bool kAligned>
__global__ void __launch_bounds__(kPartThreads, kScanBlocks)
    scanParts(const float* logits, int32_t vocabSize, const int32_t* slots, RequestTable requests,
              const int32_t* bitmask, SamplerWorkspace workspace) {
  __shared__ LogitsProcessors::Shared shared;
  __shared__ SharedParams sharedParams;
  __shared__ float scratch[kWarps];
  __shared__ int32_t countScratch[kWarps];
  const auto row = static_cast<int64_t>(blockIdx.y);
  const auto part = static_cast<int32_t>(blockIdx.x);
  if (part == 0 && threadIdx.x == 0) {
    workspace.arrivedDraws[row] = 0;
    workspace.arrivedLogprobs[row] = 0;
  }
  const int32_t slot = slots[row];
  if (slot < 0) return;

  const int32_t begin = part * kPartSize;
  float values[kGroups][kGroupSize];
  const SamplingParams& params = sharedParams.get();
  const uint32_t paramsWord = SharedParams::fetch(requests.sampling[slot]);
  const SampledRequest request = requestOf(requests, slot, params);
  int32_t numNans = loadPart<kAligned>(logits + row * vocabSize, vocabSize, begin, values);
  sharedParams.put(paramsWord);
  if (__syncthreads_or(numNans)) numNans = blockSum(numNans, countScratch);
  const LogitsProcessors::Result processed =
      LogitsProcessors(request, bitmaskOf(bitmask, row, vocabSize), begin, vocabSize, shared)
          .run(values);

  const int64_t index = row * workspace.numParts + part;
  Key best = kNoKey;
  if (isGreedy(params)) {
    best = blockMax(max(argMax(values, begin), processed.impossible), kNoKey, shared.keys);
  } else {
    const float temperature = params.temperature;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int e = 0; e < kGroupSize; ++e) {
        if (temperature != 1.0f && values[j][e] > -INFINITY) {
          values[j][e] = limitLogit(values[j][e] / temperature);
        }
      }
    }
    const float most = blockMax(largest(values), -INFINITY, scratch);
    if (isTruncated(params, vocabSize)) {
      float* scaled = workspace.scaled + row * workspace.scaledWidth + begin;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const int32_t offset = groupOffset(j);
        if (begin + offset < vocabSize) storeNarrowed(scaled + offset, values[j]);
      }
      const float least = -blockMax(-smallestFinite(values), -INFINITY, scratch);
      if (threadIdx.x == 0) {
        workspace.maxima[index] = most;
        workspace.minima[index] = least;
      }
      if (most == -INFINITY) best = blockMax(processed.impossible, kNoKey, shared.keys);
    } else {
      Draw draw{params.seed, request.numTokens, most + kMinGumbel};
#pragma unroll
      for (int j = 0; j < kGroups; ++j) draw.add(values[j], begin + groupOffset(j));
      best = blockMax(max(draw.best(), processed.impossible), kNoKey, shared.keys);
    }
  }
  if (threadIdx.x == 0) {
    workspace.bests[index] = best;
    workspace.bannedBests[index] = processed.bannedBest;
    workspace.partNans[index] = numNans;
  }
}

// Draws the part's best token of a truncated row.
__device__ Key drawFromPart(const SampledRequest& request, int64_t row, int32_t begin,
                            int32_t vocabSize, const SamplerWorkspace& workspace, Key* scratch) {
  const float* scaled = workspace.scaled + row * workspace.scaledWidth;
  const Key cut = workspace.cuts[row];
  Draw draw{request.params.seed, request.numTokens, workspace.rowMaxima[row] + kMinGumbel};
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const int32_t id = begin + groupOffset(j);
    if (id >= vocabSize) continue;
    float values[kGroupSize];
    loadWidened<kGroupSize>(scaled + id, values);
#pragma unroll
    for (int e = 0; e < kGroupSize; ++e) {
      if (keyOf(values[e], id + e) < cut) values[e] = -INFINITY;
    }
    draw.add(values, id);
  }
  return blockMax(draw.best(), kNoKey, scratch);
}

// workspace.bests -> sampled [count], appended to the slot's tokens, and numNans [count]. A row
// without a permitted token gets the best banned one, else 0. Grid: (numParts, count); a truncated
// row is completed by the last block to finish its part, other rows by their first block. Bound by
// launch latency; reads scaled once for truncated rows.
__global__ void __launch_bounds__(kPartThreads)
    chooseTokens(int32_t vocabSize, const int32_t* slots, RequestTable requests, int32_t* sampled,
                 int32_t* numNans, SamplerWorkspace workspace) {
  __shared__ Key keys[kWarps];
  __shared__ int32_t counts[kWarps];
  const auto row = static_cast<int64_t>(blockIdx.y);
  const auto part = static_cast<int32_t>(blockIdx.x);
  const int64_t slot = slots[row];
  if (slot < 0) return;
  const SampledRequest request = requestOf(requests, slot, requests.sampling[slot]);
  Key* bests = workspace.bests + row * workspace.numParts;
  if (isTruncated(request.params, vocabSize)) {
    const Key best = drawFromPart(request, row, part * kPartSize, vocabSize, workspace, keys);
    if (threadIdx.x == 0) bests[part] = max(bests[part], best);
    if (!isLastBlock(workspace.arrivedDraws + row, gridDim.x)) return;
  } else if (part != 0) {
    return;
  }

  const Key* bannedBests = workspace.bannedBests + row * workspace.numParts;
  Key best = kNoKey;
  Key bannedBest = kNoKey;
  for (auto i = static_cast<int32_t>(threadIdx.x); i < workspace.numParts; i += kPartThreads) {
    best = max(best, __ldcg(bests + i));
    bannedBest = max(bannedBest, bannedBests[i]);
  }
  best = blockMax(best, kNoKey, keys);
  if (best == kNoKey) best = blockMax(bannedBest, kNoKey, keys);
  const int32_t nans =
      sumNans(workspace.partNans + row * workspace.numParts, workspace.numParts, counts);
  if (threadIdx.x != 0) return;
  const int32_t token = best != kNoKey ? tokenIdOf(best) : 0;
  sampled[row] = token;
  numNans[row] = nans;
  if (request.numTokens < requests.maxModelLen) {
    requests.tokenIds[slot * requests.maxModelLen + request.numTokens] = token;
    requests.numTokens[slot] = request.numTokens + 1;
  }
}

// Lays the arrays out from `base`, which may be null; returns their total size in bytes.
size_t layOut(SamplerWorkspace* workspace, void* base, int32_t rows, int32_t vocabSize,
              int32_t maxLogprobs) {
  constexpr size_t kAlignment = 256;
  size_t bytes = 0;
  const auto lay = [&](auto*& array, size_t count) {
    using Element = std::remove_reference_t<decltype(*array)>;
    array = reinterpret_cast<Element*>(static_cast<char*>(base) + bytes);
    bytes += ceilDiv(count * sizeof(Element), kAlignment) * kAlignment;
  };
  SamplerWorkspace& w = *workspace;
  w.numParts = numPartsOf(vocabSize);
  w.scaledWidth = ceilDiv(vocabSize, kGroupSize) * kGroupSize;
  w.maxLogprobs = maxLogprobs;
  const auto numRows = static_cast<size_t>(rows);
  const size_t parts = numRows * static_cast<size_t>(w.numParts);
  lay(w.bests, parts);
  lay(w.bannedBests, parts);
  lay(w.partNans, parts);
  lay(w.arrivedDraws, numRows);
  lay(w.arrivedLogprobs, numRows);
  lay(w.scaled, numRows * static_cast<size_t>(w.scaledWidth));
  lay(w.maxima, parts);
  lay(w.minima, parts);
  lay(w.rowMaxima, numRows);
  lay(w.cuts, numRows);
  lay(w.partMaxima, parts);
  lay(w.partSums, parts);
  lay(w.partGreater, parts);
  lay(w.partTops, parts * static_cast<size_t>(maxLogprobs));
  return bytes;
}

}  // namespace

size_t samplerWorkspaceBytes(int32_t maxRows, int32_t vocabSize, int32_t maxLogprobs) {
  SamplerWorkspace workspace;
  return layOut(&workspace, nullptr, maxRows, vocabSize, maxLogprobs);
}

void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
            const RequestTable& requests, const int32_t* bitmask, int32_t* sampled,
            int32_t* numNans, const Logprobs& logprobs, void* workspace, cudaStream_t stream) {
  if (count == 0) return;
  SamplerWorkspace w;
  layOut(&w, workspace, count, vocabSize, logprobs.maxLogprobs);
  const dim3 grid(static_cast<unsigned>(w.numParts), static_cast<unsigned>(count));
  const auto scan = rowsAreAligned(logits, vocabSize) ? scanParts<true> : scanParts<false>;
  scan<<<grid, kPartThreads, 0, stream>>>(logits, vocabSize, slots, requests, bitmask, w);
  truncate(count, vocabSize, slots, requests, w, stream);
  chooseTokens<<<grid, kPartThreads, 0, stream>>>(vocabSize, slots, requests, sampled, numNans, w);
  if (logprobs.tokenIds) {
    fillLogprobs(logits, count, vocabSize, sampled, slots, requests.sampling, 0, nullptr, logprobs,
                 w, stream);
  }
}

void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize, const int32_t* tokenIds,
                    int32_t numTop, int32_t* numNans, const Logprobs& out, void* workspace,
                    cudaStream_t stream) {
  if (count == 0) return;
  SamplerWorkspace w;
  layOut(&w, workspace, count, vocabSize, out.maxLogprobs);
  const size_t bytes = static_cast<size_t>(count) * sizeof(unsigned);
  check(cudaMemsetAsync(w.arrivedLogprobs, 0, bytes, stream), "cudaMemsetAsync");
  fillLogprobs(logits, count, vocabSize, tokenIds, nullptr, nullptr, numTop, numNans, out, w,
               stream);
}

}  // namespace uniproc::cuda
