// The paged KV cache: blocks of blockSize tokens in each layer (Kwon et al. 2023, PagedAttention).
#pragma once

#include <cstdint>
#include <vector>

#include "backend/buffer.h"
#include "model/spec.h"

namespace uniproc {

class PagedKvCache {
 public:
  // Throws Error OUT_OF_MEMORY.
  PagedKvCache(Ops& ops, const ModelShard& shard, int32_t blockSize, int32_t numBlocks);
  // Uses one layer's memory for all layers: for dummy runs, not for generation.
  static PagedKvCache forDummyRun(Ops& ops, const ModelShard& shard, int32_t blockSize,
                                  int32_t numBlocks);

  int32_t numBlocks() const { return numBlocks_; }
  const KvCache& layer(int32_t index) const { return layers_[index]; }

 private:
  PagedKvCache() = default;
  KvCache allocateLayer(Ops& ops, const ModelShard& shard, int32_t blockSize, int32_t numBlocks);

  int32_t numBlocks_ = 0;
  std::vector<SparseBuffer> buffers_;
  std::vector<KvCache> layers_;
};

}  // namespace uniproc
