#pragma once

#include <cstdint>

#include "base/types.h"
#include "ops/linear.h"
#include "ops/sampling.h"

namespace uniproc {

// State of all requests on the device between steps, one row per slot.
struct RequestTable {
  int32_t* tokenIds = nullptr;         // [maxNumSeqs, maxModelLen]: prompt, then generated
  int32_t* numTokens = nullptr;        // [maxNumSeqs]
  int32_t* numPromptTokens = nullptr;  // [maxNumSeqs]
  int32_t* blockTable = nullptr;       // [numGroups, maxNumSeqs, maxBlocksPerSeq]
  SamplingParams* sampling = nullptr;  // [maxNumSeqs]
  int32_t maxNumSeqs = 0;
  int32_t maxModelLen = 0;
  int32_t maxBlocksPerSeq = 0;
  int32_t numGroups = 1;  // of layers, each with block tables of its own

  // The table as the operations of a group's layers take it.
  RequestTable ofGroup(int32_t group) const {
    RequestTable table = *this;
    table.blockTable += int64_t{group} * maxNumSeqs * maxBlocksPerSeq;
    return table;
  }
};

// One step's batch. A row is one request; row r has the tokens queryStarts[r] .. queryStarts[r +
// 1]. prepareInputs computes tokenIds, positions and cacheSlots; the other members come from the
// step buffers. A batch that is padded for a graph has more rows than numDecodeRows.
struct Batch {
  int32_t numRows = 0;
  int32_t numTokens = 0;
  const int32_t* slots = nullptr;              // [numRows]
  const int32_t* numComputedTokens = nullptr;  // [numRows]
  const int32_t* queryStarts = nullptr;        // [numRows + 1]
  int32_t* tokenIds = nullptr;                 // [numTokens]
  int32_t* positions = nullptr;                // [numTokens]
  int32_t* cacheSlots = nullptr;               // [numTokens]: block * blockSize + offset; below
  int32_t maxQueryLen = 0;                     // largest number of tokens of a row
  int32_t numDecodeRows = 0;                   // rows with one token
  // Every row has one token, and reads no key or value that another row of this step writes.
  bool isDecode = false;
  bool hasFewKeys = false;  // numRows <= kFewRows, and numRows * most keys of a row <= kFewKeys
  // With several groups of layers cacheSlots are [numGroups, cacheSlotStride].
  int32_t cacheSlotStride = 0;

  // The batch as the operations of a group's layers take it.
  Batch ofGroup(int32_t group) const {
    Batch batch = *this;
    batch.cacheSlots += int64_t{group} * cacheSlotStride;
    return batch;
  }

  // Bounds where one launch of few blocks per row is faster than a division of all keys among all
  // multiprocessors. A step's CUDA graph may depend on this choice, but not on lengths.
  static constexpr int32_t kFewRows = 8;
  static constexpr int32_t kFewKeys = 4096;
};

// One layer's part of the paged KV cache; keys and values are each [numBlocks, blockSize,
// numKvHeads, headDim].
struct KvCache {
  void* keys = nullptr;
  void* values = nullptr;
  StorageType type = StorageType::kFloat32;  // a float type, or kFloat8E4M3
  DType dtype = DType::kFloat32;             // of the model; the storage type if that is a float
  int32_t blockSize = 0;
  // Of kFloat8E4M3: an element is stored divided by its scale, and saturates at 448.
  float keyScale = 1.0f;
  float valueScale = 1.0f;

  bool isFloat8() const { return type == StorageType::kFloat8E4M3; }
};

// How a layer attends.
struct AttentionShape {
  int32_t numHeads = 0;
  int32_t numKvHeads = 0;
  int32_t headDim = 0;
  int32_t slidingWindow = 0;  // keys that a query attends to, itself included; 0: all earlier ones
  float scale = 0.0f;         // of query times key, usually 1 / sqrt(headDim)
  float softcap = 0.0f;       // scores are softcap * tanh(score / softcap) (Gemma 2); 0: score
  Weight sinks = {};          // [numHeads], or null: the score of one more key, without a value
  // With a slidingWindow of w, a query attends to the keys of its own chunk, [n * w, (n + 1) * w),
  // instead of the last w (Llama 4).
  bool isChunked = false;
  // Rows of qkv have queries, keys and values; else queries alone, and the keys and values are
  // those that an earlier layer cached (Gemma 4).
  bool hasKeys = true;

  // Elements of a row of qkv.
  int64_t rowWidth() const { return int64_t{numHeads + (hasKeys ? 2 * numKvHeads : 0)} * headDim; }
};

}  // namespace uniproc
