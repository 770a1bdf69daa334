#include "model/kv_cache.h"

#include <algorithm>
#include <cstddef>
#include <map>

namespace uniproc {
namespace {

// Of a block's keys, or of its values, in a layer.
size_t blockBytes(const ModelShard& shard, int32_t layer, int32_t blockSize) {
  const AttentionShape shape = shard.attention(layer);
  return static_cast<size_t>(blockSize) * shape.numKvHeads * shape.headDim *
         sizeOf(shard.spec().cacheType());
}

}  // namespace

PagedKvCache::PagedKvCache(const ModelShard& shard, const ModelLimits& limits, int32_t numBlocks)
    : numBlocks_(numBlocks) {
  for (int32_t i = 0; i < shard.spec().numLayers; ++i) groups_.push_back(limits.kvCacheGroup(i));
}

PagedKvCache::PagedKvCache(Ops& ops, const ModelShard& shard, const ModelLimits& limits,
                           int32_t numBlocks)
    : PagedKvCache(shard, limits, numBlocks) {
  // By one layer of each group, then by the bytes of a block.
  std::vector<std::map<size_t, KvCache>> shared;
  std::vector<size_t> numLayers(limits.numKvCacheGroups());
  for (int32_t layer = 0; layer < shard.spec().numLayers; ++layer) {
    if (!shard.spec().hasOwnKeys(layer)) {
      layers_.push_back(layers_[shard.spec().kvLayerOf(layer)]);
      continue;
    }
    const size_t index = numLayers[groups_[layer]]++;
    if (index == shared.size()) shared.emplace_back();
    const size_t bytes = blockBytes(shard, layer, limits.blockSize);
    auto found = shared[index].find(bytes);
    if (found == shared[index].end()) {
      const KvCache own = allocateLayer(ops, shard.spec(), bytes, limits.blockSize, numBlocks);
      found = shared[index].emplace(bytes, own).first;
    }
    KvCache cache = found->second;
    if (const auto& fp8 = shard.spec().fp8Cache) {
      cache.keyScale = fp8->keyScales[layer];
      cache.valueScale = fp8->valueScales[layer];
    }
    layers_.push_back(cache);
  }
}

PagedKvCache PagedKvCache::forDummyRun(Ops& ops, const ModelShard& shard, const ModelLimits& limits,
                                       int32_t numBlocks) {
  PagedKvCache cache(shard, limits, numBlocks);
  const int32_t numLayers = shard.spec().numLayers;
  size_t bytes = 0;
  for (int32_t layer = 0; layer < numLayers; ++layer) {
    bytes = std::max(bytes, blockBytes(shard, layer, limits.blockSize));
  }
  cache.layers_.assign(numLayers,
                       cache.allocateLayer(ops, shard.spec(), bytes, limits.blockSize, numBlocks));
  return cache;
}

KvCache PagedKvCache::allocateLayer(Ops& ops, const ModelSpec& spec, size_t blockBytes,
                                    int32_t blockSize, int32_t numBlocks) {
  const size_t bytes = numBlocks * blockBytes;
  buffers_.emplace_back(ops, bytes, "the KV cache");
  buffers_.emplace_back(ops, bytes, "the KV cache");
  const size_t last = buffers_.size() - 1;
  return {buffers_[last - 1].data(), buffers_[last].data(), spec.cacheType(), spec.dtype,
          blockSize};
}

}  // namespace uniproc
