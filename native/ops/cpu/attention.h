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

  // As Ops::attention, all float32 except the cache. Keys are processed in tiles that start at
  // multiples of kTile within the request, independent of the batch and its chunks, so a row of out
  // depends only on its own request.
  void run(const float* qkv, const Batch& batch, const AttentionShape& shape, const KvCache& cache,
           const RequestTable& requests, float* out);

 private:
  struct Problem;

  // Queries computed together because they attend to nearly the same keys: consecutive tokens of a
  // row, with all query heads that share kvHead.
  struct Task {
    int32_t row;
    int32_t token;  // index of the first token in the batch
    int32_t numTokens;
    int32_t kvHead;
    int64_t costBefore;  // total cost of the tasks before this one
  };

  int64_t makeTasks(const Batch& batch, const AttentionShape& shape);
  void runTask(const Problem& problem, const Task& task, float* scratch) const;

  ThreadPool& pool_;
  const Kernels& kernels_;
  std::vector<Task> tasks_;
  std::vector<float> scratch_;
};

}  // namespace uniproc
