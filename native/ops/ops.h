// The operations a forward pass needs, at the level at which they are fused on a GPU. The
// transformer is written once over this interface; a backend is an implementation of it.
//
// Every pointer below is device memory unless it says host. All calls are made by the device's own
// thread, in order; a backend may run them asynchronously on one stream, but keeps that order.
// Matrices are row-major. Activations have the type activationType() says; sums are float32.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "comm/communicator.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/types.h"

namespace uniproc {

constexpr CommType toCommType(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CommType::kFloat16;
    case DType::kBFloat16:
      return CommType::kBFloat16;
    default:
      return CommType::kFloat32;
  }
}

// Bytes of the host's, in memory or in a file. Several threads may read at once.
class HostBytes {
 public:
  virtual ~HostBytes() = default;
  // Copies the `size` bytes from `offset` on. Throws Error when a file does not have them.
  virtual void read(int64_t offset, int64_t size, std::byte* to) const = 0;
};

class BytesInMemory final : public HostBytes {
 public:
  explicit BytesInMemory(const std::byte* data) : data_(data) {}
  void read(int64_t offset, int64_t size, std::byte* to) const override {
    std::memcpy(to, data_ + offset, static_cast<size_t>(size));
  }

 private:
  const std::byte* const data_;
};

// A matrix [rows, cols] among the host's bytes (from `offset` on, of any alignment), some columns
// of a wider one: `rowStride` elements lie from the beginning of a row to that of the next.
struct HostMatrix {
  const HostBytes& bytes;
  int64_t offset = 0;
  StorageType type = StorageType::kFloat32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t rowStride = 0;

  int64_t count() const { return rows * cols; }

  // Elements [begin, end), counted row after row, run by run: calls visit(first, at, count) with
  // the first element's number, its offset among the bytes and how many stand there side by side.
  template <class Visit>
  void forEachRun(int64_t begin, int64_t end, Visit visit) const {
    const bool isOneRun = rowStride == cols;
    const auto elementSize = static_cast<int64_t>(sizeOf(type));
    while (begin < end) {
      const int64_t row = begin / cols;
      const int64_t col = begin % cols;
      const int64_t runEnd = isOneRun ? end : std::min(end, (row + 1) * cols);
      visit(begin, offset + (row * rowStride + col) * elementSize, runEnd - begin);
      begin = runEnd;
    }
  }
};

// Plain numbers of one request's sampling. A float may be any of float32's, NaN and infinities
// included. The lists are device arrays owned by the backend's request table; a null list is an
// empty one. Their token ids are within the vocabulary.
struct SamplingParams {
  float temperature = 1.0f;  // below 1e-5 or NaN: greedy
  float topP = 1.0f;         // from 1 on or NaN: all; below 0 as 0: the likeliest token alone
  int32_t topK = 0;          // below 1: all
  float minP = 0.0f;         // up to 0 or NaN: all; above 1 as 1
  float presencePenalty = 0.0f;
  float frequencyPenalty = 0.0f;
  float repetitionPenalty = 1.0f;
  uint64_t seed = 0;
  int32_t minTokens = 0;
  int32_t numLogprobs = -1;                    // alternatives to report; -1: no logprobs at all
  int32_t numPromptLogprobs = -1;              // the same for the prompt
  const int32_t* logitBiasTokenIds = nullptr;  // each once
  const float* logitBiases = nullptr;
  int32_t numLogitBiases = 0;
  const int32_t* allowedTokenIds = nullptr;
  int32_t numAllowedTokenIds = 0;  // 0: all are allowed
  const int32_t* badWordsTokenIds = nullptr;
  const int32_t* badWordsEnds = nullptr;
  int32_t numBadWords = 0;
  const int32_t* stopTokenIds = nullptr;
  int32_t numStopTokenIds = 0;
};

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

// Logprobs of `count` positions, each [1 + maxLogprobs] wide: the position's own token first, then
// the most likely in falling order (on equal logits the lower id first). Raw: log softmax of the
// logits as the model gave them. Ranks count from 1: 1 + the number of tokens strictly likelier.
struct Logprobs {
  int32_t* tokenIds = nullptr;  // [count, 1 + maxLogprobs]
  float* logprobs = nullptr;    // [count, 1 + maxLogprobs]
  int32_t* ranks = nullptr;     // [count]
  int32_t maxLogprobs = 0;
};

// Host memory's bytes for a place on the device, both in words of 4.
struct HostToDevice {
  void* device = nullptr;
  const void* host = nullptr;
  size_t bytes = 0;
};

struct DeviceMemory {
  size_t total = 0;
  size_t free = 0;
  size_t allocated = 0;
  size_t peakAllocated = 0;
};

// Where a device's time went since it was opened, by its own clock; of the steps that are done.
struct StepTimes {
  int64_t numSteps = 0;
  double busyMs = 0;  // from a step's first operation to its last
  double idleMs = 0;  // from the end of a step to the beginning of the next
};

// Operations recorded once and then made again in one go, as a CUDA graph is.
class Graphs {
 public:
  virtual ~Graphs() = default;
  // Makes the operations that `record` makes, or again those it made under this key: they must be
  // the same, on the same memory, whatever is in it.
  virtual void launch(int32_t key, const std::function<void()>& record) = 0;
};

class Ops : public ExpertOps {
 public:
  // Takes null, or what the device failed with. Must not throw.
  using Done = std::function<void(std::exception_ptr)>;

  // The device -----------------------------------------------------------------------------

  virtual std::string name() const = 0;
  virtual std::string capability() const = 0;
  virtual int numThreads() const = 0;
  virtual DeviceMemory memory() const = 0;
  virtual void resetPeakMemory() = 0;
  // Zeroed memory, 64-byte aligned (256 on CUDA). Throws Error OUT_OF_MEMORY with the figures;
  // `what` names it there. `release` takes what `allocate` gave.
  virtual void* allocate(size_t bytes, const char* what) = 0;
  virtual void release(void* memory, size_t bytes) noexcept = 0;
  // Host memory that the device copies from and to without staging; on the CPU plain memory.
  virtual void* allocateHost(size_t bytes, const char* what) = 0;
  virtual void releaseHost(void* memory, size_t bytes) noexcept = 0;
  // The same for host memory that is somebody else's, until `unpin`, which returns when no copy of
  // it is under way.
  virtual void pin(void* memory, size_t bytes) = 0;
  virtual void unpin(void* memory) noexcept = 0;
  virtual void copyToDevice(void* device, const void* host, size_t bytes) = 0;
  virtual void copyToHost(void* host, const void* device, size_t bytes) = 0;
  // All of these copies as one operation. The host memory, of any kind, is read before this
  // returns, and yet this does not wait for what was enqueued before.
  virtual void copyAllToDevice(std::span<const HostToDevice> copies) = 0;
  // Returns when all before it has run. Throws Error DEVICE_FAILED if the device is lost.
  virtual void synchronize() = 0;
  // A step is what lies between these two. Neither waits: `done` is called once the step's
  // operations have run, after those of the steps before, by a thread of the backend's choice. A
  // step that is begun and not ended was given up.
  virtual void beginStep() = 0;
  virtual void endStep(Done done) = 0;
  virtual StepTimes stepTimes() const = 0;
  // What is called from the one to the other is for a profiler, attached from outside, to record.
  // Throw Error NOT_SUPPORTED where there is none.
  virtual void startProfiler() = 0;
  virtual void stopProfiler() = 0;
  virtual DType activationType(DType weights) const = 0;
  // Null where operations are always made one by one. To be dropped before the memory they use.
  virtual std::unique_ptr<Graphs> makeGraphs() { return nullptr; }
  // This device's part of a group of ranks, not connected yet. To be dropped before the backend.
  virtual std::unique_ptr<Communicator> makeCommunicator(const CommunicatorConfig& config) = 0;

  // Converts the host's elements into device memory: out [rows, cols] from `host` of that size.
  // Both types are the same or float types. Throws what reading them throws; `out` then holds
  // anything.
  virtual void upload(void* out, StorageType outType, const HostMatrix& host) = 0;
  // Copies device memory to host memory of any kind, quicker than copyToHost where it is much.
  // Returns when it is there.
  virtual void download(void* host, const void* in, int64_t bytes) = 0;
  // Normal(0, std) from a Philox stream keyed by (seed, index); constant for std 0 with that mean.
  virtual void fillRandom(void* out, StorageType type, int64_t count, float mean, float std,
                          uint64_t seed) = 0;

  // The forward pass -----------------------------------------------------------------------

  // Applies blockUpdates [numBlockUpdates, 3] = (slot, index, block) to the block tables, then
  // fills batch.tokenIds, positions, cacheSlots and tokenRows. A token's id is read from the
  // request table, where the step before may just have put it.
  virtual void prepareInputs(const RequestTable& requests, const int32_t* blockUpdates,
                             int32_t numBlockUpdates, int32_t blockSize, const Batch& batch) = 0;

  // out [numTokens, hiddenSize] = rows of table [rows, hiddenSize], whose first is that of token
  // `firstToken`; zeros for tokens that the table does not have.
  virtual void embed(const int32_t* tokenIds, int32_t numTokens, const Weight& table,
                     int32_t firstToken, void* out) = 0;

  // residual += x when x is given; out = residual / rms(residual) * weight. [numTokens, hiddenSize]
  // Zhang and Sennrich 2019. `out` may be `x`.
  virtual void rmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight,
                       float eps, void* out) = 0;

  // out [numTokens, rows] = x [numTokens, cols] W^T (+ bias). `outType` is the activations' or
  // float32 (logits).
  virtual void linear(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                      DType outType) = 0;

  // A linear layer behind a norm: rmsNorm, then the layer on its output, of the activations' type.
  struct NormInput {
    const void* x = nullptr;  // [numTokens, hiddenSize], or null
    void* residual = nullptr;
    const Weight& norm;
    float eps = 0.0f;
    void* normed = nullptr;  // [numTokens, hiddenSize]; may be x
  };
  virtual void normLinear(const NormInput& in, int32_t numTokens, const LinearWeight& weight,
                          void* out) {
    rmsNorm(in.x, in.residual, numTokens, in.norm, in.eps, in.normed);
    linear(in.normed, numTokens, weight, out, activationType(in.norm.dtype));
  }

  // The gate and the up projection and their product: out [numTokens, rows / 2] = silu(y[:, :rows /
  // 2]) * y[:, rows / 2:] of y = linear(x). `gateUp` [numTokens, rows] is room for y. All of the
  // activations' `type`.
  virtual void linearSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight,
                                void* gateUp, void* out, DType type) {
    linear(x, numTokens, weight, gateUp, type);
    siluAndMul(gateUp, numTokens, static_cast<int32_t>(weight.rows / 2), out, type);
  }

  // In place on qkv [numTokens, (numHeads + 2 numKvHeads) * headDim]: RMS-normalises each head of q
  // and k when qNorm is given, rotates q and k (halves, as in GPT-NeoX) by rope [maxModelLen, 2,
  // headDim / 2] (cos then sin, float32) at each token's position, writes k and v to the cache.
  virtual void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape,
                            const Weight& qNorm, const Weight& kNorm, float eps, const float* rope,
                            const KvCache& cache) = 0;

  // out [numTokens, numHeads * headDim]: causal attention of each token over its request's cache,
  // scale 1 / sqrt(headDim), within the sliding window.
  virtual void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
                         const KvCache& cache, const RequestTable& requests, void* out) = 0;

  // out [numTokens, size] = silu(gateUp[:, :size]) * gateUp[:, size:], both of the activations'
  // `type`.
  virtual void siluAndMul(const void* gateUp, int32_t numTokens, int32_t size, void* out,
                          DType type) = 0;

  // out [count, width] = x[index[i], :], both of the activations' `type`. index is device memory.
  virtual void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width,
                          void* out, DType type) = 0;

  // out [count, width] = the parts [ceil(width / partWidth), count, partWidth] side by side,
  // float32; what of the last is beyond width is left out.
  virtual void joinColumns(const float* parts, int32_t count, int32_t partWidth, int32_t width,
                           float* out) = 0;

  // Sampling -------------------------------------------------------------------------------

  // Samples one token for each of `count` rows of logits [count, vocabSize] (float32, overwritten),
  // row i for slots[i], into sampled [count], appends it to the slot's tokens in the request table,
  // and fills logprobs row i where that slot asks for them (numLogprobs >= 0). `bitmask` [count,
  // ceil(vocabSize / 32)] or null: a set bit allows a token. numNans [count] becomes the number of
  // NaN among each row's logits as the model gave them.
  //
  // In vLLM's order: raw logprobs; bitmask, allowed tokens, bad words (over the generated tokens),
  // stop tokens before minTokens, logit bias, repetition (prompt and generated), frequency and
  // presence (generated) penalties; greedy takes the arg max here (the lowest id of equals); then
  // temperature, min-p, top-k, top-p, and a draw by the Gumbel trick: the arg max of logit -
  // log(-log(u)), u from Philox4x32-10 keyed by the seed with the counter (position, token id / 4),
  // position being the sampled token's own. A row's draw depends on nothing else.
  //
  // Whatever the logits and the parameters are:
  //
  // - A raw logit of NaN counts as -inf, +inf as the largest float. A token with -inf is
  // impossible:
  //   it stays so, and is sampled only where no permitted token is possible.
  // - A possible token that is permitted stays possible: each step's result (a bias, each penalty,
  //   the division by the temperature) is limited to float32's finite numbers, NaN becoming the
  //   lowest of them (limitLogit of logits.h).
  // - min-p, top-k and top-p keep the likeliest token. One with a probability of exactly topP or
  //   minP times the largest is kept.
  // - The token is one that bitmask and allowed tokens permit and that is neither the end of a bad
  //   word nor an early stop token. Where no permitted token is possible, it is the lowest such id.
  //   Where bad words and stop tokens leave nothing of what bitmask and allowed tokens permit, they
  //   are lifted, and it is the arg max of the raw logits permitted. Where those permit nothing, 0.
  virtual void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
                      const RequestTable& requests, const int32_t* bitmask, int32_t* sampled,
                      int32_t* numNans, const Logprobs& logprobs) = 0;

  // Logprobs of tokenIds [count] under logits [count, vocabSize], with the numTop likeliest, and
  // the number of NaN among each row's logits, numNans [count].
  virtual void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                              const int32_t* tokenIds, int32_t numTop, int32_t* numNans,
                              const Logprobs& out) = 0;
};

}  // namespace uniproc
