#include "model/kv_cache.h"

namespace uniproc {

PagedKvCache::PagedKvCache(Ops& ops, const ModelShard& shard, int32_t blockSize, int32_t numBlocks)
    : numBlocks_(numBlocks) {
  for (int32_t i = 0; i < shard.spec().numLayers; ++i) {
    layers_.push_back(allocateLayer(ops, shard, blockSize, numBlocks));
  }
}

PagedKvCache PagedKvCache::forDummyRun(Ops& ops, const ModelShard& shard, int32_t blockSize,
                                       int32_t numBlocks) {
  PagedKvCache cache;
  cache.numBlocks_ = numBlocks;
  const KvCache layer = cache.allocateLayer(ops, shard, blockSize, numBlocks);
  cache.layers_.assign(shard.spec().numLayers, layer);
  return cache;
}

KvCache PagedKvCache::allocateLayer(Ops& ops, const ModelShard& shard, int32_t blockSize,
                                    int32_t numBlocks) {
  const ModelSpec& spec = shard.spec();
  const AttentionShape shape = shard.attention(0);
  const size_t bytes = numBlocks * static_cast<size_t>(blockSize) * shape.numKvHeads *
                       shape.headDim * sizeOf(spec.dtype);
  buffers_.emplace_back(ops, bytes, "the KV cache");
  buffers_.emplace_back(ops, bytes, "the KV cache");
  const size_t last = buffers_.size() - 1;
  return {buffers_[last - 1].data(), buffers_[last].data(), spec.dtype, blockSize};
}

}  // namespace uniproc
