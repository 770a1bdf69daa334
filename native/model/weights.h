// The model's weights on the device, and how they come there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/spec.h"
#include "ops/cpu/memory.h"
#include "runtime/buffer.h"

namespace uniproc {

// Part of one weight, to be laid at `rowOffset`: some rows and columns of a tensor in a file.
// WeightPart of lib/native/index.ts.
struct WeightPart {
  std::string weight;
  int32_t layer = 0;
  int64_t rowOffset = 0;
  int32_t file = 0;
  int64_t offset = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t rowStride = 0;  // elements of the file from a row to the next
  DType dtype = DType::kFloat32;
};

// Null where the model has none.
struct LayerWeights {
  Weight inputNorm;          // [hiddenSize]
  Weight qkv;                // [(numHeads + 2 numKvHeads) * headDim, hiddenSize]
  Weight qkvBias;            // [(numHeads + 2 numKvHeads) * headDim]
  Weight qNorm;              // [headDim]
  Weight kNorm;              // [headDim]
  Weight o;                  // [hiddenSize, numHeads * headDim]
  Weight oBias;              // [hiddenSize]
  Weight postAttentionNorm;  // [hiddenSize]
  Weight gateUp;             // [2 * intermediateSize, hiddenSize]
  Weight gateUpBias;         // [2 * intermediateSize]
  Weight down;               // [hiddenSize, intermediateSize]
  Weight downBias;           // [hiddenSize]
};

// All weights' bytes in host memory, which is not pinned.
class HostCopy {
 public:
  explicit HostCopy(size_t bytes);
  ~HostCopy();
  HostCopy(const HostCopy&) = delete;
  HostCopy& operator=(const HostCopy&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  MemoryAccount memory_;
  const size_t bytes_;
  void* const data_;
};

class Weights {
 public:
  Weight embedTokens;  // [vocabShard.size, hiddenSize]
  Weight norm;         // [hiddenSize]
  Weight lmHead;       // [vocabShard.size, hiddenSize]; null when it is the embedding
  std::vector<LayerWeights> layers;

  // Reads the parts from the files, converting to the model's type. Every row of every weight but
  // those that pad the vocabulary must be named once, and lie in its file: Error
  // CHECKPOINT_INVALID, before anything is allocated; the same error when a file becomes shorter or
  // unreadable meanwhile. `progress` is told the bytes read and the
  // parts done. Gives up with SHUT_DOWN when asked to stop.
  using Progress = std::function<void(int64_t bytes, int64_t parts)>;
  static Weights fromCheckpoint(Ops& ops, const ModelSpec& spec,
                                const std::vector<std::string>& files,
                                const std::vector<WeightPart>& parts, const Progress& progress,
                                std::stop_token stop);
  // Normal(0, 0.02), norms 1, from the seed.
  static Weights random(Ops& ops, const ModelSpec& spec, uint64_t seed);

  // To host memory, and the same weights from there. Throw Error OUT_OF_MEMORY when the host, or
  // the device, has not that much free.
  std::unique_ptr<const HostCopy> toHost(Ops& ops) const;
  static Weights fromHost(Ops& ops, const ModelSpec& spec, const HostCopy& copy);

  const Weight& outputHead() const { return lmHead ? lmHead : embedTokens; }

 private:
  // A weight by the name that parts use.
  struct Named {
    const char* name;
    int32_t layer;
    Weight* weight;
    bool isNorm;
    int64_t rowsInFiles;  // its first
  };
  // A part and the index of its weight among the named.
  struct Placed {
    const WeightPart* part;
    size_t weight;
  };

  // The shapes of all weights, without memory.
  explicit Weights(const ModelSpec& spec);
  std::vector<Named> named();
  // The parts in the order of the files' bytes. Throws as fromCheckpoint does.
  std::vector<Placed> place(const std::vector<WeightPart>& parts,
                            const std::vector<CheckpointFile>& files);
  static void checkCoverage(const std::vector<Named>& all, std::vector<Placed>& placed,
                            const std::vector<CheckpointFile>& files);
  void allocate(Ops& ops);

  int64_t vocabRows_;            // of the embedding and the head, that files have
  std::vector<Buffer> buffers_;  // one for each of the named
};

}  // namespace uniproc
