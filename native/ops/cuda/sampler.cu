// Samples tokens from rows of logits. The host knows what the requests of a batch ask for, and
// launches no kernel for what none of them asks:
//
// - scanParts reads the logits once, applies the requests' parameters, and finds the token of
//   greedy rows and of rows drawn from the whole vocabulary.
// - truncateAndDraw (truncate_cluster.cu) finds the cuts of min-p, top-k and top-p in the other
//   rows and draws from what remains.
// - fillLogprobs (logprobs.cu) computes logprobs.
//
// Without clusters of blocks, before Hopper, two kernels replace truncateAndDraw: truncate
// (truncate.cu) finds the cuts, chooseTokens draws and ends all rows. Both paths sample the same
// tokens. Blocks of rows without truncation, or without logprobs, return at once.
#include <type_traits>

#include "ops/cuda/cuda_check.h"
#include "ops/cuda/draw.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/logits_processors.cuh"
#include "ops/cuda/sampling.cuh"
#include "ops/logits.h"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = kPartThreads / kWarpSize;
// Resident blocks of scanParts per multiprocessor, limited by registers.
constexpr int kScanBlocks = 4;

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
//
// kFinishes: the last block of a row that is not truncated ends the row.
template <bool kAligned, bool kFinishes>
__global__ void __launch_bounds__(kPartThreads, kScanBlocks)
    scanParts(const float* logits, int32_t vocabSize, const int32_t* slots, RequestTable requests,
              const int32_t* bitmask, SampledTokens sampled, SamplerWorkspace workspace) {
  __shared__ LogitsProcessors::Shared shared;
  __shared__ SharedParams sharedParams;
  __shared__ float scratch[kWarps];
  __shared__ int32_t countScratch[kWarps];
  const auto row = static_cast<int64_t>(blockIdx.y);
  const auto part = static_cast<int32_t>(blockIdx.x);
  // Both were written before the step's first kernel ended.
  const int32_t slot = slots[row];
  const uint32_t paramsWord = slot < 0 ? 0 : SharedParams::fetch(requests.sampling[slot]);
  waitForPrevious();
  if (part == 0 && threadIdx.x == 0) {
    workspace.arrivedDraws[row] = 0;
    workspace.arrivedLogprobs[row] = 0;
  }
  if (slot < 0) return;

  const int32_t begin = part * kPartSize;
  float values[kGroups][kGroupSize];
  const SamplingParams& params = sharedParams.get();
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
  if constexpr (kFinishes) {
    // Only thread 0 has written, so one warp suffices.
    if (threadIdx.x >= kWarpSize || isTruncated(params, vocabSize)) return;
    if (!isLastWarp(workspace.arrivedParts + row, gridDim.x)) return;
    RowEnd::load(row, workspace).finish(row, slot, request.numTokens, requests, sampled);
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

// Ends every row, and draws from the truncated ones before (by workspace.cuts). Grid: (numParts,
// count); a truncated row is ended by the last block to finish its part, other rows by their first
// block. Bound by launch latency; reads scaled once for truncated rows.
__global__ void __launch_bounds__(kPartThreads)
    chooseTokens(int32_t vocabSize, const int32_t* slots, RequestTable requests,
                 SampledTokens sampled, SamplerWorkspace workspace) {
  __shared__ Key keys[kWarps];
  waitForPrevious();
  const auto row = static_cast<int64_t>(blockIdx.y);
  const auto part = static_cast<int32_t>(blockIdx.x);
  const int64_t slot = slots[row];
  if (slot < 0) return;
  const SampledRequest request = requestOf(requests, slot, requests.sampling[slot]);
  if (isTruncated(request.params, vocabSize)) {
    const Key best = drawFromPart(request, row, part * kPartSize, vocabSize, workspace, keys);
    Key& partBest = workspace.bests[row * workspace.numParts + part];
    if (threadIdx.x == 0) partBest = max(partBest, best);
    if (!isLastBlock(workspace.arrivedDraws + row, gridDim.x)) return;
  } else if (part != 0) {
    return;
  }
  if (threadIdx.x >= kWarpSize) return;
  RowEnd::load(row, workspace).finish(row, slot, request.numTokens, requests, sampled);
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

SamplerPath samplerPath(const SampledFeatures& features) {
  return features.truncation && !canTruncateInClusters() ? SamplerPath::kPlain
                                                         : SamplerPath::kFused;
}

void sample(const float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
            const RequestTable& requests, const int32_t* bitmask, const SampledFeatures& features,
            int32_t* sampled, int32_t* numNans, const Logprobs& logprobs, SamplerPath path,
            const SamplerScratch& scratch, cudaStream_t stream) {
  if (count == 0) return;
  SamplerWorkspace w;
  layOut(&w, scratch.workspace, count, vocabSize, logprobs.maxLogprobs);
  w.arrivedParts = scratch.counters;
  const SampledTokens out{sampled, numNans};
  const dim3 grid(static_cast<unsigned>(w.numParts), static_cast<unsigned>(count));
  const bool isFused = path == SamplerPath::kFused;
  const auto scan = rowsAreAligned(logits, vocabSize)
                        ? (isFused ? scanParts<true, true> : scanParts<true, false>)
                        : (isFused ? scanParts<false, true> : scanParts<false, false>);
  launch(scan, grid, kPartThreads, 0, stream, logits, vocabSize, slots, requests, bitmask, out, w);
  if (!isFused) {
    truncate(count, vocabSize, slots, requests, w, stream);
    launch(chooseTokens, grid, kPartThreads, 0, stream, vocabSize, slots, requests, out, w);
  } else if (features.truncation) {
    truncateAndDraw(count, vocabSize, slots, requests, out, w, stream);
  }
  if (features.logprobs) {
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
