#include "model/decoder.h"

#include "model/blocks/attention.h"
#include "model/blocks/experts.h"
#include "model/blocks/gated_mlp.h"
#include "model/rope.h"

namespace uniproc {

Decoder::Decoder(const ModelShard& shard, Parameters& parameters)
    : shard_(shard), embedding_(shard), head_(shard, embedding_) {
  for (int32_t layer = 0; layer < shard.spec().numLayers; ++layer) {
    blocks_.push_back(std::make_unique<AttentionBlock>(shard, layer, rope_));
    if (shard.spec().hasExperts(layer)) {
      blocks_.push_back(std::make_unique<ExpertsBlock>(shard, layer));
    } else {
      blocks_.push_back(std::make_unique<GatedMlpBlock>(shard, layer));
    }
  }
  embedding_.declare(parameters);
  for (const auto& block : blocks_) block->declare(parameters);
  head_.declare(parameters);
}

void Decoder::allocate(Ops& ops, const ModelLimits& limits, Communicator* communicator) {
  communicator_ = communicator;
  activations_.dtype = ops.activationType(shard_.spec().dtype);
  const size_t tokens = limits.maxNumBatchedTokens;
  const auto activations = [&](size_t bytesPerToken) {
    return bytesPerToken == 0 ? Buffer() : Buffer(ops, tokens * bytesPerToken, "the activations");
  };
  const size_t hiddenBytes = shard_.spec().hiddenSize * sizeOf(activations_.dtype);
  ScratchBytes scratch;
  for (const auto& block : blocks_) scratch = scratch.largest(block->scratch(activations_.dtype));
  activations_.residual = activations(hiddenBytes);
  activations_.hidden = activations(hiddenBytes);
  activations_.first = activations(scratch.first);
  activations_.second = activations(scratch.second);
  activations_.third = activations(scratch.third);
  head_.allocate(ops, activations_.dtype, limits.maxNumSeqs, communicator);

  const std::vector<float> rope = ropeTable(shard_.spec(), limits.maxModelLen);
  rope_ = Buffer(ops, rope.size() * sizeof(float), "the rope table");
  ops.copyToDevice(rope_.data(), rope.data(), rope.size() * sizeof(float));
  ops.synchronize();
}

void Decoder::release() noexcept {
  activations_ = {};
  rope_ = {};
  head_.release();
}

void Decoder::reserve(Ops& ops) {
  const Activations& all = activations_;
  for (const Buffer* buffer : {&all.residual, &all.hidden, &all.first, &all.second, &all.third}) {
    ops.reserve(buffer->data(), buffer->bytes());
  }
  head_.reserve(ops);
}

void Decoder::forward(Ops& ops, const PagedKvCache& cache, const RequestTable& requests,
                      const Batch& batch) {
  embedding_.forward(ops, batch.tokenIds, batch.numTokens, activations_.residual.data());
  if (communicator_) {
    communicator_->allReduce(activations_.residual.data(),
                             int64_t{batch.numTokens} * shard_.spec().hiddenSize,
                             toCommType(activations_.dtype), ReduceOp::kSum);
  }
  const ForwardPass pass = {ops, batch, requests, cache, activations_, communicator_};
  for (const auto& block : blocks_) {
    block->forward(pass, /*isFirst=*/block == blocks_.front());
  }
}

}  // namespace uniproc
