#include "model/blocks/head.h"

namespace uniproc {

void Head::declare(Parameters& parameters) {
  const ModelSpec& spec = shard_.spec();
  const Dimension hidden = {Share::all(spec.hiddenSize), "hiddenSize"};
  parameters.norm(norm_, {-1, "norm"}, hidden);
  if (spec.tieWordEmbeddings || spec.poolsLastToken) return;
  parameters.linear(head_, {.parts = {{{-1, "head"}, {shard_.vocab(), "vocabSize"}}},
                            .cols = hidden,
                            .storedRows = shard_.vocabShardSize()});
}

void Head::allocate(Ops& ops, DType activations, int32_t maxRows, Communicator* communicator) {
  communicator_ = communicator;
  const ModelSpec& spec = shard_.spec();
  const size_t rows = maxRows;
  const auto logits = [&](size_t count) {
    return Buffer(ops, count * sizeof(float), "the logits");
  };
  residual_ = Buffer(ops, rows * spec.hiddenSize * sizeOf(activations), "the activations");
  hidden_ = Buffer(ops, rows * spec.hiddenSize * sizeOf(activations), "the activations");
  if (spec.poolsLastToken) return;
  logits_ = logits(rows * spec.vocabSize);
  if (!communicator) return;
  shardLogits_ = logits(rows * shard_.vocabShardSize());
  gatheredLogits_ = logits(communicator->worldSize() * rows * shard_.vocabShardSize());
}

void Head::release() noexcept {
  for (Buffer* buffer : {&residual_, &hidden_, &logits_, &shardLogits_, &gatheredLogits_}) {
    *buffer = {};
  }
}

void Head::reserve(Ops& ops) {
  for (Buffer* buffer : {&residual_, &hidden_, &logits_, &shardLogits_, &gatheredLogits_}) {
    ops.reserve(buffer->data(), buffer->bytes());
  }
}

void* Head::computeStates(Ops& ops, const Activations& activations, const int32_t* index,
                          int32_t count) {
  const ModelSpec& spec = shard_.spec();
  const DType dtype = activations.dtype;
  void* residual = activations.residual.data();
  void* hidden = activations.hidden.data();
  if (index) {
    ops.gatherRows(residual, index, count, spec.hiddenSize, residual_.data(), dtype);
    ops.gatherRows(hidden, index, count, spec.hiddenSize, hidden_.data(), dtype);
    residual = residual_.data();
    hidden = hidden_.data();
  }
  ops.norm({hidden, residual, norm_, spec.rmsNormEps, hidden, activations.hiddenTerms}, count);
  return hidden;
}

float* Head::computeLogits(Ops& ops, const Activations& activations, const int32_t* index,
                           int32_t count) {
  const ModelSpec& spec = shard_.spec();
  const void* hidden = computeStates(ops, activations, index, count);
  const LinearWeight& head = spec.tieWordEmbeddings ? embedding_.table() : head_;
  float* own = communicator_ ? shardLogits_.as<float>() : logits();
  ops.linear(hidden, count, head, own, DType::kFloat32);
  if (communicator_) {
    const auto size = static_cast<int32_t>(shard_.vocabShardSize());
    auto* gathered = gatheredLogits_.as<float>();
    communicator_->allGather(own, gathered, int64_t{count} * size, CommType::kFloat32);
    ops.joinColumns(gathered, count, size, spec.vocabSize, logits());
  }
  if (spec.logitScale != 1.0f) {
    ops.scale(logits(), int64_t{count} * spec.vocabSize, spec.logitScale, DType::kFloat32);
  }
  if (spec.logitSoftcap > 0.0f) {
    ops.softcap(logits(), int64_t{count} * spec.vocabSize, spec.logitSoftcap);
  }
  return logits();
}

}  // namespace uniproc
