// A model on a device: its weights, KV cache, requests and steps; NativeModel of
// lib/native/index.ts. The device's thread makes every call, except that JavaScript also accesses
// the step buffers.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/resident.h"
#include "base/stop_token.h"
#include "comm/device_communicator.h"
#include "model/decoder.h"
#include "model/kv_cache.h"
#include "model/parameters.h"
#include "model/spec.h"
#include "runner/batch_inputs.h"
#include "runner/request.h"
#include "runner/request_slots.h"
#include "runner/step_buffers.h"

namespace uniproc {

class ModelRunner : public Resident {
 public:
  // Allocates only the step buffers, which need no device. Throws Error CONFIG_INVALID if spec or
  // limits are inconsistent. `communicator` connects the ranks that hold the model's shards, which
  // must all make the same calls; null or a world of one rank: this rank holds the whole model.
  ModelRunner(const ModelSpec& spec, const ModelLimits& limits,
              std::shared_ptr<DeviceCommunicator> communicator);

  // One per batch in flight. Callers that share the memory must keep the pointer.
  const std::vector<std::shared_ptr<StepBuffers>>& steps() const { return steps_; }

  // Loads the weights, and on the first call allocates the workspace of steps. After an error
  // everything that the call allocated is freed. Throws INVALID_STATE if weights are loaded.
  void load(Ops& ops, const std::vector<std::string>& files,
            const std::vector<ParameterSource>& sources, const Parameters::Progress& progress,
            StopToken stop);
  // Ranks get different values.
  void loadDummy(Ops& ops, uint64_t seed);
  void releaseWeights();

  // Move the weights to host memory, and back. After an error they stay where they were.
  void offloadWeights(Ops& ops);
  void restoreWeights(Ops& ops);

  void allocateKvCache(Ops& ops, int32_t numBlocks);
  void releaseKvCache();

  // Both use requests and a cache of their own. `profile` raises the device's peak memory to that
  // of the largest step: where operations prepare on first use it runs that step with one layer of
  // each kind, else it allocates and reserves the step's memory and computes nothing. Returns the
  // bytes that the CUDA graphs of all sizes will take, which it does not keep allocated. `warmUp`
  // runs the smallest step, and
  // where operations prepare on first use a few more shapes.
  size_t profile(Ops& ops);
  void warmUp(Ops& ops);
  // Runs the largest step with all layers.
  void runLargestStep(Ops& ops);

  // Throws Error REQUEST_INVALID for an unacceptable request. Callable on any thread.
  void checkRequest(const Request& request) const;
  // A step consists of addRequest and removeRequest calls as needed, then forward, then sample.
  // Their errors are deferred and thrown by `sample`, unless the device itself failed. `sample`
  // does not wait: unless it throws, `done` is called once the outputs are in the step's buffers.
  // `bitmask` [numSampled, ceil(vocabSize / 32)] may be null.
  void addRequest(Ops& ops, int32_t slot, const Request& request);
  void removeRequest(int32_t slot);
  void forward(Ops& ops, const StepLaunch& launch);
  // A model that pools copies embeddings to StepBuffers::pooled instead, and samples nothing.
  void sample(Ops& ops, int32_t step, const std::vector<int32_t>* bitmask, Ops::Done done);
  // The logits [numRows, vocabSize] of the launched step's sampled rows, before `sample`.
  std::vector<float> logits(Ops& ops, int32_t numRows);

  // Frees all device memory.
  void release() noexcept override;

 private:
  // Memory of steps, independent of weights and cache.
  struct Workspace {
    Workspace(Ops& ops, const ModelSpec& spec, const ModelLimits& limits,
              const std::vector<std::shared_ptr<StepBuffers>>& steps);

    std::vector<PinnedMemory> steps;
    RequestSlots slots;
    BatchInputs inputs;
    Buffer bitmask;          // [maxNumSeqs, ceil(vocabSize / 32)]
    Buffer sampled;          // [2, maxNumSeqs]: token ids, then NaN counts of the logits
    Buffer logprobTokenIds;  // [maxNumSeqs, 1 + maxLogprobs]
    Buffer logprobs;         // [maxNumSeqs, 1 + maxLogprobs]
    Buffer logprobRanks;     // [maxNumSeqs]

    int32_t* numNans(const ModelLimits& limits) const {
      return sampled.as<int32_t>() + limits.maxNumSeqs;
    }
    Logprobs logprobsOut(const ModelLimits& limits) const;
    // Copies `count` positions' logprobs to the host, as rows from `first` on.
    void copyLogprobs(Ops& ops, int32_t first, int32_t count, const ModelLimits& limits,
                      std::span<int32_t> outTokenIds, std::span<float> outLogprobs,
                      std::span<int32_t> outRanks) const;
  };

  // What a step runs on: the model's own requests and cache, or those of a dummy run.
  struct StepContext {
    StepBuffers& step;
    RequestSlots& slots;
    const PagedKvCache& cache;
    Graphs* graphs;  // null: launch operations one by one
    Decoder::Depth depth;
  };

  struct DummyStep;

  struct Launched {
    StepLaunch launch;
    int32_t graphRows = 0;  // size of its graph, 0 for none
    SampledFeatures features = {};
    bool isSampled = false;        // in one graph with the forward pass
    const void* states = nullptr;  // [numSampled, hiddenSize], of a model that pools
  };

  void runForward(Ops& ops, Launched& launched, const StepContext& context);
  void sampleRows(Ops& ops, const Launched& launched, const StepContext& context,
                  const int32_t* bitmask);
  void runSample(Ops& ops, const Launched& launched, const StepContext& context,
                 const std::vector<int32_t>* bitmask);
  void promptLogprobs(Ops& ops, const StepLaunch& launch, const StepContext& context);
  int32_t largestRows() const;
  int32_t largestTokens() const;
  void requireNoLaunch() const;
  void dummyRun(Ops& ops, int32_t numRows, int32_t numTokens, Graphs* graphs = nullptr,
                Decoder::Depth depth = Decoder::Depth::kAllLayers);
  size_t graphBytes(Ops& ops, int32_t numRows);
  template <typename Body>
  void deferError(Body body);
  void requireNoWeights() const;
  void requireWeights() const;
  template <typename Fill>
  void fillWeights(Ops& ops, Fill fill);
  const ModelSpec& spec() const { return shard_.spec(); }
  int32_t pooledWidth() const { return spec().poolsLastToken ? spec().hiddenSize : 0; }
  Communicator* communicator() const;
  Workspace& requireWorkspace();
  StepContext requireStepContext(Ops& ops, int32_t step);
  int32_t graphRows(const StepLaunch& launch, const StepContext& context) const;
  int32_t paddedRows(int32_t numRows) const;

  const std::shared_ptr<DeviceCommunicator> communicator_;  // null for a single rank
  const ModelShard shard_;
  const ModelLimits limits_;
  std::vector<std::shared_ptr<StepBuffers>> steps_;

  Parameters parameters_;
  Decoder decoder_;                                   // over the parameters
  std::unique_ptr<const HostCopy> offloadedWeights_;  // while offloaded
  std::optional<Workspace> workspace_;
  std::optional<PagedKvCache> cache_;
  std::unique_ptr<Graphs> graphs_;  // record operations on the three members above

  // The launched step that waits for `sample`, and the first error since the last `sample`.
  std::optional<Launched> launched_;
  std::exception_ptr error_;
};

}  // namespace uniproc
