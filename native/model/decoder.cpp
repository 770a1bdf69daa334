#include "model/decoder.h"

#include <memory>
#include <utility>

#include "base/float_types.h"
#include "model/blocks/attention.h"
#include "model/blocks/experts.h"
#include "model/blocks/gated_mlp.h"
#include "model/blocks/mlp_and_experts.h"
#include "model/rope.h"

namespace uniproc {

Decoder::Decoder(const ModelShard& shard, Parameters& parameters)
    : shard_(shard),
      ropes_(shard.spec().ropes.size()),
      layerScales_(shard.spec().layerScales ? shard.spec().numLayers : 0),
      embedding_(shard),
      perLayerInputs_(shard),
      head_(shard, embedding_) {
  for (int32_t layer = 0; layer < shard.spec().numLayers; ++layer) {
    const int32_t rope = shard.spec().layerRopes[layer];
    blocks_.push_back(
        std::make_unique<AttentionBlock>(shard, layer, rope < 0 ? nullptr : &ropes_[rope]));
    const bool hasExperts = shard.spec().hasExperts(layer);
    if (hasExperts && shard.spec().experts->besideMlp) {
      blocks_.push_back(std::make_unique<MlpAndExpertsBlock>(shard, layer));
    } else if (hasExperts) {
      blocks_.push_back(std::make_unique<ExpertsBlock>(shard, layer));
    } else {
      blocks_.push_back(std::make_unique<GatedMlpBlock>(shard, layer));
    }
    if (shard.spec().perLayerInputSize > 0) {
      blocks_.push_back(std::make_unique<PerLayerInputBlock>(shard, layer));
    }
  }
  embedding_.declare(parameters);
  if (shard.spec().perLayerInputSize > 0) perLayerInputs_.declare(parameters);
  for (const auto& block : blocks_) block->declare(parameters);
  for (size_t i = 0; i < layerScales_.size(); ++i) {
    // As norms, which are 1 in random weights.
    parameters.norm(layerScales_[i], {static_cast<int32_t>(i), "layer.scale"},
                    {Share::all(1), "1"});
  }
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
  ScratchBytes scratch = perLayerInputs_.scratch(activations_.dtype);
  for (const auto& block : blocks_) scratch = scratch.largest(block->scratch(activations_.dtype));
  activations_.residual = activations(hiddenBytes);
  activations_.hidden = activations(hiddenBytes);
  activations_.first = activations(scratch.first);
  activations_.second = activations(scratch.second);
  activations_.third = activations(scratch.third);
  activations_.perLayerInputs = activations(perLayerInputs_.bytesPerToken(activations_.dtype));
  const ModelSpec& spec = shard_.spec();
  activations_.hiddenTerms = spec.inputNorms && !spec.outputNorms ? communicator : nullptr;
  head_.allocate(ops, activations_.dtype, limits.maxNumSeqs, communicator);

  for (size_t i = 0; i < ropes_.size(); ++i) {
    const int32_t headDim = spec.headDimOfRope(static_cast<int32_t>(i));
    const std::unique_ptr<const float[]> table =
        ropeTable(spec.ropes[i], headDim, limits.maxModelLen);
    const int64_t size = int64_t{limits.maxModelLen} * headDim;
    ropes_[i] = Buffer(ops, size * sizeof(float), "the rope table");
    const BytesInMemory bytes(reinterpret_cast<const std::byte*>(table.get()));
    ops.upload(ropes_[i].data(), StorageType::kFloat32,
               {bytes, 0, StorageType::kFloat32, 1, size, size});
    ops.synchronize();
  }
}

void Decoder::release() noexcept {
  activations_ = {};
  for (Buffer& rope : ropes_) rope = {};
  head_.release();
}

void Decoder::reserve(Ops& ops) {
  const Activations& all = activations_;
  for (const Buffer* buffer :
       {&all.residual, &all.hidden, &all.first, &all.second, &all.third, &all.perLayerInputs}) {
    ops.reserve(buffer->data(), buffer->bytes());
  }
  head_.reserve(ops);
}

void Decoder::forward(Ops& ops, const PagedKvCache& cache, const RequestTable& requests,
                      const Batch& batch, Depth depth) {
  embedding_.forward(ops, batch.tokenIds, batch.numTokens, activations_.residual.data());
  const ModelSpec& spec = shard_.spec();
  if (communicator_) {
    communicator_->allReduce(activations_.residual.data(),
                             int64_t{batch.numTokens} * spec.hiddenSize,
                             toCommType(activations_.dtype), ReduceOp::kSum);
  }
  if (spec.embeddingScale != 1.0f) {
    const float factor =
        spec.roundsEmbeddingScale ? roundTo(spec.dtype, spec.embeddingScale) : spec.embeddingScale;
    ops.scale(activations_.residual.data(), int64_t{batch.numTokens} * spec.hiddenSize, factor,
              activations_.dtype);
  }
  const ForwardPass pass = {ops, batch, requests, cache, activations_, communicator_};
  if (spec.perLayerInputSize > 0) perLayerInputs_.forward(pass);
  // Layers with and without experts, other heads and own keys.
  bool hasRun[2][2][2] = {};
  const size_t blocksPerLayer = blocks_.size() / static_cast<size_t>(spec.numLayers);
  for (size_t i = 0; i < blocks_.size(); i += blocksPerLayer) {
    const auto layer = static_cast<int32_t>(i / blocksPerLayer);
    const bool isNew = !std::exchange(
        hasRun[spec.hasExperts(layer)][spec.hasOtherHeads(layer)][spec.hasOwnKeys(layer)], true);
    if (depth == Depth::kOneOfEachKind && !isNew) continue;
    for (size_t block = i; block < i + blocksPerLayer; ++block) {
      blocks_[block]->forward(pass, /*isFirst=*/block == 0);
      blocks_[block]->finish(pass);
    }
    if (spec.layerScales) {
      const int64_t count = int64_t{batch.numTokens} * spec.hiddenSize;
      for (const Buffer* x : {&activations_.residual, &activations_.hidden}) {
        ops.scaleBy(x->data(), count, layerScales_[layer], activations_.dtype);
      }
    }
  }
}

}  // namespace uniproc
