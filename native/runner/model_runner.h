// A model on a device: its weights, cache, requests and steps; NativeModelRunner of
// lib/native/index.ts.
// All but the step buffers belongs to the device's thread, which makes every call.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "comm/device_communicator.h"
#include "model/decoder.h"
#include "model/kv_cache.h"
#include "model/parameters.h"
#include "model/spec.h"
#include "runner/batch_inputs.h"
#include "runner/request.h"
#include "runner/request_slots.h"
#include "runner/step_buffers.h"
#include "runtime/device_thread.h"

namespace uniproc {

class ModelRunner : public Resident {
 public:
  // Allocates the staging sets alone, which need no device. Throws Error CONFIG_INVALID when the
  // spec or the limits contradict themselves. The communicator is that of the ranks that hold the
  // model's shares, each making the same calls; null, or one of a single rank: this is all of it.
  ModelRunner(const ModelSpec& spec, const ModelLimits& limits,
              std::shared_ptr<DeviceCommunicator> communicator);

  // One for each batch in flight. Whoever hands the memory out keeps it alive.
  const std::vector<std::shared_ptr<StepBuffers>>& steps() const { return steps_; }

  // The weights, and at the first time what steps need for the limits. On an error all that the
  // call allocated is free again. INVALID_STATE when there are weights.
  void load(Ops& ops, const std::vector<std::string>& files,
            const std::vector<ParameterSource>& sources, const Parameters::Progress& progress,
            std::stop_token stop);
  // Each rank's are others.
  void loadDummy(Ops& ops, uint64_t seed);
  void releaseWeights();

  // Moves the weights to host memory, and back to the device. On an error they stay where they are.
  void offloadWeights(Ops& ops);
  void restoreWeights(Ops& ops);

  void allocateKvCache(Ops& ops, int32_t numBlocks);
  void releaseKvCache();

  // Steps on made-up requests, with a cache of their own: the largest batch; a few common shapes.
  // `profile` returns the bytes that the graphs of all sizes will take, which are no allocation.
  size_t profile(Ops& ops);
  void warmUp(Ops& ops);

  // Throws Error REQUEST_INVALID for a request that no slot would take. Any thread may call.
  void checkRequest(const Request& request) const;
  // A step is addRequest and removeRequest as need be, then forward, then sample. An error of the
  // former is kept for `sample` to throw, unless the device itself failed. `sample` does not wait:
  // unless it throws, `done` is called once the outputs are in the step's buffers. `bitmask`
  // [numSampled, ceil(vocabSize / 32)] may be null.
  void addRequest(Ops& ops, int32_t slot, const Request& request);
  void removeRequest(int32_t slot);
  void forward(Ops& ops, const StepLaunch& launch);
  void sample(Ops& ops, int32_t step, const std::vector<int32_t>* bitmask, Ops::Done done);
  // The logits [numRows, vocabSize] that wait for `sample`, of the rows to be sampled.
  std::vector<float> logits(Ops& ops, int32_t numRows);

  // Frees all device memory.
  void release() noexcept override;

 private:
  // What steps need for the limits, whatever the weights and the cache.
  struct Workspace {
    Workspace(Ops& ops, const ModelSpec& spec, const ModelLimits& limits,
              const std::vector<std::shared_ptr<StepBuffers>>& steps);

    std::vector<Pinned> steps;
    RequestSlots slots;
    BatchInputs inputs;
    Buffer bitmask;          // [maxNumSeqs, ceil(vocabSize / 32)]
    Buffer sampled;          // [2, maxNumSeqs]: token ids, then numbers of NaN among the logits
    Buffer logprobTokenIds;  // [maxNumSeqs, 1 + maxLogprobs]
    Buffer logprobs;         // [maxNumSeqs, 1 + maxLogprobs]
    Buffer logprobRanks;     // [maxNumSeqs]

    int32_t* numNans(const ModelLimits& limits) const {
      return sampled.as<int32_t>() + limits.maxNumSeqs;
    }
    Logprobs logprobsOut(const ModelLimits& limits) const;
    // `count` positions' logprobs to the host, as rows from `first` on.
    void copyLogprobs(Ops& ops, int32_t first, int32_t count, const ModelLimits& limits,
                      std::span<int32_t> outTokenIds, std::span<float> outLogprobs,
                      std::span<int32_t> outRanks) const;
  };

  // Where a step runs: on the model's own requests and cache, or on those of a rehearsal.
  struct Stage {
    StepBuffers& step;
    RequestSlots& slots;
    const PagedKvCache& cache;
    Graphs* graphs;  // null where operations are made one by one
  };

  struct Launched {
    StepLaunch launch;
    int32_t graphRows;  // of the graph it runs in, 0 for none
  };

  void runForward(Ops& ops, const StepLaunch& launch, int32_t graphRows, const Stage& stage);
  void runSample(Ops& ops, const Launched& launched, const Stage& stage,
                 const std::vector<int32_t>* bitmask);
  void promptLogprobs(Ops& ops, const StepLaunch& launch, const Stage& stage);
  void rehearse(Ops& ops, int32_t numRows, int32_t numTokens, Graphs* graphs = nullptr);
  size_t graphBytes(Ops& ops, int32_t numRows);
  template <typename Body>
  void keepError(Body body);
  void requireNoWeights() const;
  void requireWeights() const;
  template <typename Fill>
  void fillWeights(Ops& ops, Fill fill);
  const ModelSpec& spec() const { return shard_.spec(); }
  Communicator* communicator() const;
  Workspace& requireWorkspace();
  Stage requireStage(Ops& ops, int32_t step);
  int32_t graphRows(const StepLaunch& launch, const Stage& stage) const;
  int32_t paddedRows(int32_t numRows) const;

  const std::shared_ptr<DeviceCommunicator> communicator_;  // null of a single rank
  const ModelShard shard_;
  const ModelLimits limits_;
  std::vector<std::shared_ptr<StepBuffers>> steps_;

  Parameters parameters_;
  Decoder decoder_;                                   // over the parameters
  std::unique_ptr<const HostCopy> offloadedWeights_;  // while they are not on the device
  std::optional<Workspace> workspace_;
  std::optional<PagedKvCache> cache_;
  std::unique_ptr<Graphs> graphs_;  // over the three above

  // The step whose logits wait for `sample`, and what went wrong since the last `sample`.
  std::optional<Launched> launched_;
  std::exception_ptr error_;
};

}  // namespace uniproc
