// Token embeddings.
#pragma once

#include "model/parameters.h"
#include "model/spec.h"
#include "ops/ops.h"

namespace uniproc {

class Embedding {
 public:
  explicit Embedding(const ModelShard& shard) : shard_(shard) {}

  void declare(Parameters& parameters) {
    const ModelSpec& spec = shard_.spec();
    parameters.matrix(table_, {-1, "embedding"}, {shard_.vocab(), "vocabSize"},
                      {Share::all(spec.hiddenSize), "hiddenSize"}, shard_.vocabShardSize(),
                      /*isMultiplied=*/spec.tieWordEmbeddings);
  }

  // out [numTokens, hiddenSize]: this rank's term of the sum over ranks, zeros for tokens of other
  // ranks.
  void forward(Ops& ops, const int32_t* tokenIds, int32_t numTokens, void* out) const {
    ops.embed(tokenIds, numTokens, table_, static_cast<int32_t>(shard_.rank() * table_.rows), out);
  }

  const LinearWeight& table() const { return table_; }

 private:
  const ModelShard& shard_;
  LinearWeight table_;  // [vocabShardSize, hiddenSize]
};

}  // namespace uniproc
