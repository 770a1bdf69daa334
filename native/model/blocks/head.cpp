#include "model/blocks/head.h"

namespace uniproc {

void Head::declare(Parameters& parameters) {
  const ModelSpec& spec = shard_.spec();
  const Dimension hidden = {Share::all(spec.hiddenSize), "hiddenSize"};
  parameters.norm(norm_, {-1, "norm"}, hidden);
  if (spec.tieWordEmbeddings) return;
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

float* Head::computeLogits(Ops& ops, const Activations& activations, const int32_t* index,
                           int32_t count) {
  const ModelSpec& spec = shard_.spec();
  const DType dtype = activations.dtype;
  ops.gatherRows(activations.residual.data(), index, count, spec.hiddenSize, residual_.data(),
                 dtype);
  ops.gatherRows(activations.hidden.data(), index, count, spec.hiddenSize, hidden_.data(), dtype);
  ops.norm(
      {hidden_.data(), residual_.data(), norm_, spec.rmsNormEps, hidden_.data(), communicator_},
      count);
  const LinearWeight head = spec.tieWordEmbeddings ? LinearWeight::of(embedding_.table()) : head_;
  float* own = communicator_ ? shardLogits_.as<float>() : logits();
  ops.linear(hidden_.data(), count, head, own, DType::kFloat32);
  if (communicator_) {
    const auto size = static_cast<int32_t>(shard_.vocabShardSize());
    auto* gathered = gatheredLogits_.as<float>();
    communicator_->allGather(own, gathered, int64_t{count} * size, CommType::kFloat32);
    ops.joinColumns(gathered, count, size, spec.vocabSize, logits());
  }
  return logits();
}

}  // namespace uniproc
