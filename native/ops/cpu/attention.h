// Attention of a batch's tokens over the paged cache.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "ops/ops.h"

namespace uniproc {

class Attention {
 public:
  Attention(ThreadPool& pool, const Kernels& kernels);

  // As Ops::attention, all float32 but the cache. A query's keys are taken in tiles that begin at
  // multiples of kTile in its request, whatever the batch and its chunks: a row of out depends on
  // its own request alone.
  void run(const float* qkv, const Batch& batch, const AttentionShape& shape, const KvCache& cache,
           const RequestTable& requests, float* out);

 private:
  struct Problem;

  // Queries that see nearly the same keys and are computed together: those of some consecutive
  // tokens of a row, with all heads that share the keys of `kvHead`.
  struct Task {
    int32_t row;
    int32_t token;  // the first, counted in the batch
    int32_t numTokens;
    int32_t kvHead;
    int64_t costBefore;  // of the tasks before it
  };

  int64_t makeTasks(const Batch& batch, const AttentionShape& shape);
  void runTask(const Problem& problem, const Task& task, float* scratch) const;

  ThreadPool& pool_;
  const Kernels& kernels_;
  std::vector<Task> tasks_;
  std::vector<float> scratch_;
};

}  // namespace uniproc
