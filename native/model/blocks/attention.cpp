#include "model/blocks/attention.h"

#include <utility>
#include <vector>

namespace uniproc {

void AttentionBlock::declare(Parameters& parameters) {
  const ModelSpec& spec = shard_.spec();
  const Dimension hidden = {Share::all(spec.hiddenSize), "hiddenSize"};
  const int32_t headDim = shape_.headDim;
  const bool isOther = spec.hasOtherHeads(layer_);
  const Dimension heads = {shard_.heads().times(headDim),
                           isOther ? "numHeads * otherHeadDim" : "numHeads * headDim"};
  const Dimension kvHeads = {shard_.kvHeads(layer_).times(headDim),
                             isOther ? "otherNumKvHeads * otherHeadDim" : "numKvHeads * headDim"};
  const Dimension head = {Share::all(headDim), isOther ? "otherHeadDim" : "headDim"};
  const RopeSpec* rope = spec.rope(layer_);
  const HeadOrder order =
      rope ? HeadOrder{headDim, rope->rotaryDim, spec.interleavedRope} : HeadOrder{};

  declareNorms(parameters, "attention.norm", "attention.outputNorm");
  using Bias = Parameters::Bias;
  std::vector<Parameters::LinearPart> parts = {{name("attention.q"), heads, order}};
  if (shape_.hasKeys) {
    parts.push_back({name("attention.k"), kvHeads, order});
    parts.push_back({name("attention.v"), kvHeads});
  }
  parameters.linear(
      qkv_,
      {.parts = std::move(parts), .cols = hidden, .bias = spec.qkvBias ? Bias::kAll : Bias::kNone});
  if (spec.qkNorm == QkNorm::kHead) {
    parameters.norm(qNorm_, name("attention.qNorm"), head, order);
    if (shape_.hasKeys) parameters.norm(kNorm_, name("attention.kNorm"), head, order);
  } else if (spec.qkNorm == QkNorm::kUnweighted && rope) {
    // Before the rotation, which leaves a head's norm as it is.
    parameters.ones(qNorm_, headDim);
    parameters.ones(kNorm_, headDim);
  } else if (spec.qkNorm == QkNorm::kProjection) {
    parameters.norm(qProjectionNorm_, name("attention.qNorm"), heads, order);
    parameters.norm(kProjectionNorm_, name("attention.kNorm"), kvHeads, order);
  }
  if (spec.attentionSinks) {
    parameters.vector(sinks_, name("attention.sinks"), {shard_.heads(), "numHeads"});
  }
  parameters.linear(o_, {.parts = {{name("attention.o"), hidden}},
                         .cols = heads,
                         .bias = spec.outputBias ? Bias::kFirstRank : Bias::kNone});
}

ScratchBytes AttentionBlock::scratch(DType activations) const {
  const size_t headSize = shape_.headDim * sizeOf(activations);
  return {static_cast<size_t>(shape_.rowWidth()) * sizeOf(activations), shape_.numHeads * headSize,
          shard_.spec().qkNorm == QkNorm::kProjection ? 2 * sizeof(float) : 0};
}

void AttentionBlock::forward(const ForwardPass& pass, bool isFirst) {
  const Activations& activations = pass.activations;
  const int32_t group = pass.cache.group(layer_);
  const Batch batch = pass.batch.ofGroup(group);
  const RequestTable requests = pass.requests.ofGroup(group);
  Ops& ops = pass.ops;
  const ModelSpec& spec = shard_.spec();
  const float* rope = rope_ ? rope_->as<float>() : nullptr;
  void* qkv = activations.first.data();
  void* attended = activations.second.data();
  const KvCache& cache = pass.cache.layer(layer_);
  AttentionShape shape = shape_;
  shape.sinks = sinks_;

  inputLinear(pass, isFirst, qkv_, qkv);
  if (qProjectionNorm_) normProjections(pass, qkv);
  if (spec.valueNorm && shape.hasKeys) {
    ops.normValues(qkv, batch.numTokens, shape, spec.rmsNormEps, activations.dtype);
  }
  if (spec.queryScaleBeta == 0.0f || (spec.queryScaleUnrotatedOnly && rope)) {
    ops.ropeAndAttention(qkv, batch, shape, qNorm_, kNorm_, spec.rmsNormEps, rope, cache, requests,
                         attended);
  } else {
    ops.ropeAndCache(qkv, batch, shape, qNorm_, kNorm_, spec.rmsNormEps, rope, cache);
    ops.scaleQueries(
        qkv, batch, shape,
        {spec.queryScaleBeta, spec.queryScalePeriod, static_cast<float>(spec.queryScaleShift)},
        activations.dtype);
    ops.attention(qkv, batch, shape, cache, requests, attended);
  }
  ops.linear(attended, batch.numTokens, o_, activations.hidden.data(), activations.dtype);
}

// Every rank's sums have as many elements; with more ranks than KV heads, a head counts on each.
void AttentionBlock::normProjections(const ForwardPass& pass, void* qkv) const {
  const Activations& activations = pass.activations;
  const int32_t numTokens = pass.batch.numTokens;
  auto* sums = activations.third.as<float>();
  pass.ops.sumSquares(qkv, numTokens, shape_, sums, activations.dtype);
  if (pass.communicator) {
    pass.communicator->allReduce(sums, 2 * int64_t{numTokens}, CommType::kFloat32, ReduceOp::kSum);
  }
  const int32_t worldSize = shard_.worldSize();
  pass.ops.normProjections(
      qkv, numTokens, shape_,
      {sums, qProjectionNorm_, kProjectionNorm_, worldSize * shape_.numHeads * shape_.headDim,
       worldSize * shape_.numKvHeads * shape_.headDim, shard_.spec().rmsNormEps},
      activations.dtype);
}

}  // namespace uniproc
