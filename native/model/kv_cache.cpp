#include "model/kv_cache.h"

namespace uniproc {

PagedKvCache::PagedKvCache(Ops& ops, const ModelSpec& spec, int32_t blockSize, int32_t numBlocks)
    : numBlocks_(numBlocks) {
  for (int32_t i = 0; i < spec.numLayers; ++i) {
    layers_.push_back(allocateLayer(ops, spec, blockSize, numBlocks));
  }
}

PagedKvCache PagedKvCache::forRehearsal(Ops& ops, const ModelSpec& spec, int32_t blockSize,
                                        int32_t numBlocks) {
  PagedKvCache cache;
  cache.numBlocks_ = numBlocks;
  const KvCache layer = cache.allocateLayer(ops, spec, blockSize, numBlocks);
  cache.layers_.assign(spec.numLayers, layer);
  return cache;
}

KvCache PagedKvCache::allocateLayer(Ops& ops, const ModelSpec& spec, int32_t blockSize,
                                    int32_t numBlocks) {
  const size_t bytes =
      size_t{1} * numBlocks * blockSize * spec.numKvHeads * spec.headDim * sizeOf(spec.dtype);
  buffers_.emplace_back(ops, bytes, "the KV cache");
  buffers_.emplace_back(ops, bytes, "the KV cache");
  const size_t last = buffers_.size() - 1;
  return {buffers_[last - 1].data(), buffers_[last].data(), spec.dtype, blockSize};
}

}  // namespace uniproc
