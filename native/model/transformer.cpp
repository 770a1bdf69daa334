#include "model/transformer.h"

#include <vector>

#include "model/rope.h"

namespace uniproc {

Transformer::Transformer(Ops& ops, const ModelSpec& spec, const ModelLimits& limits,
                         Communicator* communicator)
    : spec_(spec), activationType_(ops.activationType(spec.dtype)), communicator_(communicator) {
  const auto activations = [&](size_t rows, size_t cols) {
    return Buffer(ops, rows * cols * sizeOf(activationType_), "the activations");
  };
  const size_t tokens = limits.maxNumBatchedTokens;
  const size_t rows = limits.maxNumSeqs;
  residual_ = activations(tokens, spec.hiddenSize);
  hidden_ = activations(tokens, spec.hiddenSize);
  qkv_ = activations(tokens, spec.qkvSize());
  attention_ = activations(tokens, size_t{1} * spec.numHeads * spec.headDim);
  gateUp_ = activations(tokens, size_t{2} * spec.intermediateSize);
  mlp_ = activations(tokens, spec.intermediateSize);
  lastResidual_ = activations(rows, spec.hiddenSize);
  lastHidden_ = activations(rows, spec.hiddenSize);
  const auto logits = [&](size_t count) {
    return Buffer(ops, count * sizeof(float), "the logits");
  };
  logits_ = logits(rows * spec.vocabSize);
  if (communicator) {
    shardLogits_ = logits(rows * spec.vocabShard.size);
    gatheredLogits_ = logits(communicator->worldSize() * rows * spec.vocabShard.size);
  }

  const std::vector<float> rope = ropeTable(spec, limits.maxModelLen);
  rope_ = Buffer(ops, rope.size() * sizeof(float), "the rope table");
  ops.copyToDevice(rope_.data(), rope.data(), rope.size() * sizeof(float));
  ops.synchronize();
}

void Transformer::forward(Ops& ops, const Weights& weights, const PagedKvCache& cache,
                          const RequestTable& requests, const Batch& batch) {
  ops.embed(batch.tokenIds, batch.numTokens, weights.embedTokens, spec_.vocabShard.start,
            residual_.data());
  sumOverRanks(residual_, batch.numTokens);
  for (int32_t i = 0; i < spec_.numLayers; ++i) {
    decoderLayer(ops, i, weights.layers[i], cache.layer(i), requests, batch);
  }
}

void Transformer::decoderLayer(Ops& ops, int32_t index, const LayerWeights& layer,
                               const KvCache& cache, const RequestTable& requests,
                               const Batch& batch) {
  const int32_t numTokens = batch.numTokens;
  const AttentionShape shape = spec_.attention(index);
  const auto* mlpBefore = index == 0 ? nullptr : hidden_.data();
  ops.rmsNorm(mlpBefore, residual_.data(), numTokens, layer.inputNorm, spec_.rmsNormEps,
              hidden_.data());
  ops.matmul(hidden_.data(), numTokens, layer.qkv, layer.qkvBias, qkv_.data(), activationType_);
  ops.ropeAndCache(qkv_.data(), batch, shape, layer.qNorm, layer.kNorm, spec_.rmsNormEps,
                   rope_.as<float>(), cache);
  ops.attention(qkv_.data(), batch, shape, cache, requests, attention_.data());
  ops.matmul(attention_.data(), numTokens, layer.o, layer.oBias, hidden_.data(), activationType_);
  sumOverRanks(hidden_, numTokens);

  ops.rmsNorm(hidden_.data(), residual_.data(), numTokens, layer.postAttentionNorm,
              spec_.rmsNormEps, hidden_.data());
  ops.matmul(hidden_.data(), numTokens, layer.gateUp, layer.gateUpBias, gateUp_.data(),
             activationType_);
  ops.siluAndMul(gateUp_.data(), numTokens, spec_.intermediateSize, mlp_.data(), activationType_);
  ops.matmul(mlp_.data(), numTokens, layer.down, layer.downBias, hidden_.data(), activationType_);
  sumOverRanks(hidden_, numTokens);
}

void Transformer::sumOverRanks(const Buffer& x, int32_t numTokens) {
  if (!communicator_) return;
  communicator_->allReduce(x.data(), int64_t{numTokens} * spec_.hiddenSize,
                           toCommType(activationType_), ReduceOp::kSum);
}

float* Transformer::computeLogits(Ops& ops, const Weights& weights, const int32_t* index,
                                  int32_t count) {
  ops.gatherRows(residual_.data(), index, count, spec_.hiddenSize, lastResidual_.data(),
                 activationType_);
  ops.gatherRows(hidden_.data(), index, count, spec_.hiddenSize, lastHidden_.data(),
                 activationType_);
  ops.rmsNorm(lastHidden_.data(), lastResidual_.data(), count, weights.norm, spec_.rmsNormEps,
              lastHidden_.data());
  float* own = communicator_ ? shardLogits_.as<float>() : logits();
  ops.matmul(lastHidden_.data(), count, weights.outputHead(), Weight(), own, DType::kFloat32);
  if (communicator_) {
    const int32_t size = spec_.vocabShard.size;
    auto* gathered = gatheredLogits_.as<float>();
    communicator_->allGather(own, gathered, int64_t{count} * size, CommType::kFloat32);
    ops.joinColumns(gathered, count, size, spec_.vocabSize, logits());
  }
  return logits();
}

}  // namespace uniproc
