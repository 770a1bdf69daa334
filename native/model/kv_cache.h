// The paged KV cache: blocks of blockSize tokens in each layer (Kwon et al. 2023, PagedAttention).
//
// Layers form groups, each with block tables of its own. A block belongs to one group at a time and
// takes the same bytes in all: the i-th layers of all groups share one piece of memory, if their
// blocks have the same bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/buffer.h"
#include "model/spec.h"

namespace uniproc {

class PagedKvCache {
 public:
  // Throws Error OUT_OF_MEMORY.
  PagedKvCache(Ops& ops, const ModelShard& shard, const ModelLimits& limits, int32_t numBlocks);
  // Uses one layer's memory for all layers: for dummy runs, not for generation.
  static PagedKvCache forDummyRun(Ops& ops, const ModelShard& shard, const ModelLimits& limits,
                                  int32_t numBlocks);

  int32_t numBlocks() const { return numBlocks_; }
  const KvCache& layer(int32_t index) const { return layers_[index]; }
  // The layer's group, whose block tables name its blocks.
  int32_t group(int32_t layer) const { return groups_[layer]; }

 private:
  PagedKvCache(const ModelShard& shard, const ModelLimits& limits, int32_t numBlocks);
  KvCache allocateLayer(Ops& ops, const ModelSpec& spec, size_t blockBytes, int32_t blockSize,
                        int32_t numBlocks);

  int32_t numBlocks_ = 0;
  std::vector<int32_t> groups_;  // [numLayers]
  std::vector<SparseBuffer> buffers_;
  std::vector<KvCache> layers_;
};

}  // namespace uniproc
