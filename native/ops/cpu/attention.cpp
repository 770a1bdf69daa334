#include "ops/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/float_types.h"

namespace uniproc {
namespace {

constexpr int32_t kTile = 64;                 // keys
constexpr int32_t kQueries = 32;              // per task, if its tokens can be divided so
constexpr int64_t kMinWidened = 8;            // queries for which keys are widened once
constexpr int64_t kMinWidenedFloat8 = 5;      // the same of fp8: more queries decode a key twice
constexpr int64_t kMinWorkPerPart = 1 << 15;  // multiply-adds worth waking a thread for
constexpr float kMasked = -std::numeric_limits<float>::infinity();

int32_t tokensPerTask(int32_t group) { return std::max(kQueries / group, 1); }

// The first key that the query at `position` attends to.
int32_t firstKey(int32_t position, const AttentionShape& shape) {
  if (shape.slidingWindow == 0) return 0;
  if (shape.isChunked) return position - position % shape.slidingWindow;
  return std::max(position - shape.slidingWindow + 1, 0);
}

}  // namespace

struct Attention::Problem {
  const float* qkv;
  const Batch& batch;
  const AttentionShape& shape;
  const KvCache& cache;
  const RequestTable& requests;
  float* out;

  int32_t group() const { return shape.numHeads / shape.numKvHeads; }
  int64_t qkvWidth() const { return shape.rowWidth(); }
};

Attention::Attention(ThreadPool& pool, const Kernels& kernels) : pool_(pool), kernels_(kernels) {}

void Attention::run(const float* qkv, const Batch& batch, const AttentionShape& shape,
                    const KvCache& cache, const RequestTable& requests, float* out) {
  const Problem problem{qkv, batch, shape, cache, requests, out};
  const int64_t totalCost = makeTasks(batch, shape);
  const int parts = pool_.numParts(totalCost, kMinWorkPerPart);
  const int64_t queries = static_cast<int64_t>(tokensPerTask(problem.group())) * problem.group();
  const auto scratchSize =
      static_cast<size_t>(queries * (2 * shape.headDim + kTile + 2) + 2 * kTile * shape.headDim);
  scratch_.resize(std::max(scratch_.size(), scratchSize * static_cast<size_t>(pool_.numThreads())));
  pool_.run(parts, [&](int part, int thread) {
    // The tasks that start in this part's share of the total cost.
    const auto firstOf = [&](int p) {
      return std::partition_point(tasks_.begin(), tasks_.end(), [&](const Task& task) {
        return task.costBefore < totalCost * p / parts;
      });
    };
    const auto end = firstOf(part + 1);
    for (auto task = firstOf(part); task != end; ++task) {
      runTask(problem, *task, scratch_.data() + scratchSize * static_cast<size_t>(thread));
    }
  });
}

// Returns the total cost in multiply-adds.
int64_t Attention::makeTasks(const Batch& batch, const AttentionShape& shape) {
  const int32_t group = shape.numHeads / shape.numKvHeads;
  const int32_t step = tokensPerTask(group);
  int64_t cost = 0;
  tasks_.clear();
  for (int32_t row = 0; row < batch.numRows; ++row) {
    const int32_t begin = batch.queryStarts[row];
    const int32_t end = batch.queryStarts[row + 1];
    for (int32_t token = begin; token < end; token += step) {
      const int32_t numTokens = std::min(step, end - token);
      const int32_t position = batch.numComputedTokens[row] + token - begin;
      const int64_t keys = position + numTokens - firstKey(position, shape);
      for (int32_t kvHead = 0; kvHead < shape.numKvHeads; ++kvHead) {
        tasks_.push_back({row, token, numTokens, kvHead, cost});
        cost += keys * numTokens * group * shape.headDim * 2;
      }
    }
  }
  return cost;
}

void Attention::runTask(const Problem& problem, const Task& task, float* scratch) const {
  const auto& [qkv, batch, shape, cache, requests, out] = problem;
  const int32_t group = problem.group();
  const int64_t headDim = shape.headDim;
  const int64_t numQueries = static_cast<int64_t>(task.numTokens) * group;
  const bool widens = cache.type != StorageType::kFloat32 &&
                      numQueries >= (cache.isFloat8() ? kMinWidenedFloat8 : kMinWidened);
  const int type = indexOfCached(widens ? StorageType::kFloat32 : cache.type);
  const int32_t firstPosition =
      batch.numComputedTokens[task.row] + task.token - batch.queryStarts[task.row];
  const int32_t lastPosition = firstPosition + task.numTokens - 1;

  // Query i is head kvHead * group + i % group of token i / group.
  float* queries = scratch;                      // [numQueries, headDim], scaled
  float* sums = queries + numQueries * headDim;  // [numQueries, headDim], weighted sums of values
  float* scores = sums + numQueries * headDim;   // [numQueries, kTile]
  float* maxima = scores + numQueries * kTile;   // [numQueries]
  float* weights = maxima + numQueries;          // [numQueries], sums of exp(score - maximum)
  float* widened = weights + numQueries;         // [2, kTile, headDim], keys and values
  for (int64_t i = 0; i < numQueries; ++i) {
    const int64_t head = task.kvHead * group + i % group;
    const float* query = qkv + (task.token + i / group) * problem.qkvWidth() + head * headDim;
    std::copy_n(query, headDim, queries + i * headDim);
  }
  kernels_.scale(queries, numQueries * headDim, shape.scale * cache.keyScale);
  std::fill_n(sums, numQueries * headDim, 0.0f);
  std::fill_n(maxima, numQueries, kMasked);
  std::fill_n(weights, numQueries, 0.0f);

  const int64_t slot = batch.slots[task.row];
  const int32_t* blocks = requests.blockTable + slot * requests.maxBlocksPerSeq;
  const int64_t headBytes = headDim * static_cast<int64_t>(sizeOf(cache.type));
  const int32_t oldest = firstKey(firstPosition, shape);
  for (int32_t tile = oldest / kTile * kTile; tile <= lastPosition; tile += kTile) {
    const int32_t begin = std::max(oldest - tile, 0);
    const int32_t end = std::min(lastPosition + 1 - tile, kTile);
    const void* keys[kTile];
    const void* values[kTile];
    for (int32_t j = begin; j < end;) {  // block by block
      const int32_t block = blocks[(tile + j) / cache.blockSize];
      int32_t offset = (tile + j) % cache.blockSize;
      for (; offset < cache.blockSize && j < end; ++offset, ++j) {
        const int64_t cacheSlot = int64_t{block} * cache.blockSize + offset;
        const int64_t bytes = (cacheSlot * shape.numKvHeads + task.kvHead) * headBytes;
        keys[j] = static_cast<const char*>(cache.keys) + bytes;
        values[j] = static_cast<const char*>(cache.values) + bytes;
        if (!widens) continue;
        const auto widen = kernels_.widen[indexOfCached(cache.type)];
        float* key = widened + j * headDim;
        float* value = key + kTile * headDim;
        widen(keys[j], headDim, key);
        widen(values[j], headDim, value);
        keys[j] = key;
        values[j] = value;
      }
    }

    std::fill_n(scores, numQueries * kTile, 0.0f);
    kernels_.dot[type](queries, headDim, numQueries, keys + begin, end - begin, headDim,
                       values + begin, scores + begin, kTile);
    if (shape.softcap > 0.0f) kernels_.softcap(scores, numQueries * kTile, shape.softcap);
    for (int64_t i = 0; i < numQueries; ++i) {
      const auto position = firstPosition + static_cast<int32_t>(i / group);
      const int32_t first = firstKey(position, shape) - tile;
      const int32_t past = position + 1 - tile;
      float* score = scores + i * kTile;
      if (first >= kTile || past <= 0) {  // sees none of these keys
        std::fill_n(score, kTile, 0.0f);
        continue;
      }
      if (first > 0) std::fill_n(score, first, kMasked);
      if (past < kTile) std::fill_n(score + past, kTile - past, kMasked);
      const float factor = kernels_.softmaxStep(score, kTile, maxima + i, weights + i);
      kernels_.scale(sums + i * headDim, headDim, factor);
    }
    kernels_.weightedSum[type](scores, kTile, numQueries, values, begin, end, headDim, sums,
                               headDim);
  }

  for (int64_t i = 0; i < numQueries; ++i) {
    const int64_t head = task.kvHead * group + i % group;
    float* to = out + ((task.token + i / group) * shape.numHeads + head) * headDim;
    std::copy_n(sums + i * headDim, headDim, to);
    float weight = weights[i];
    if (shape.sinks) {
      const auto* sinks = static_cast<const std::byte*>(shape.sinks.data);
      weight += std::exp(elementAt(sinks, shape.sinks.dtype, head) - maxima[i]);
    }
    kernels_.scale(to, headDim, cache.valueScale / weight);
  }
}

}  // namespace uniproc
