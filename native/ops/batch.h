// What a step's operations run on: the requests on the device, the batch, the paged cache.
#pragma once

#include <cstdint>

#include "base/types.h"
#include "ops/sampling.h"

namespace uniproc {

// What the device knows of the requests between steps, one row a slot.
struct RequestTable {
  int32_t* tokenIds = nullptr;         // [maxNumSeqs, maxModelLen]: prompt, then generated
  int32_t* numTokens = nullptr;        // [maxNumSeqs]
  int32_t* numPromptTokens = nullptr;  // [maxNumSeqs]
  int32_t* blockTable = nullptr;       // [maxNumSeqs, maxBlocksPerSeq]
  SamplingParams* sampling = nullptr;  // [maxNumSeqs]
  int32_t maxNumSeqs = 0;
  int32_t maxModelLen = 0;
  int32_t maxBlocksPerSeq = 0;
};

// One step's batch. A row is one request; its tokens are queryStarts[row] .. queryStarts[row + 1].
// The first five come from the staging set; prepareInputs derives the rest.
struct Batch {
  int32_t numRows = 0;
  int32_t numTokens = 0;
  const int32_t* slots = nullptr;              // [numRows]
  const int32_t* numComputedTokens = nullptr;  // [numRows]
  const int32_t* queryStarts = nullptr;        // [numRows + 1]
  int32_t* tokenIds = nullptr;                 // [numTokens]
  int32_t* positions = nullptr;                // [numTokens]
  int32_t* cacheSlots = nullptr;               // [numTokens]: block * blockSize + offset
  int32_t* tokenRows = nullptr;                // [numTokens]: the row a token belongs to
  int32_t maxQueryLen = 0;                     // the most tokens a row has
  int32_t numDecodeRows = 0;                   // rows of one token
};

// One layer's share of the paged cache, keys and values alike [numBlocks, blockSize, numKvHeads,
// headDim].
struct KvCache {
  void* keys = nullptr;
  void* values = nullptr;
  DType dtype = DType::kFloat32;
  int32_t blockSize = 0;
};

struct AttentionShape {
  int32_t numHeads = 0;
  int32_t numKvHeads = 0;
  int32_t headDim = 0;
  int32_t slidingWindow = 0;  // keys a query sees, itself included; 0: all before it
};

}  // namespace uniproc
