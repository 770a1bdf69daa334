#include "runner/model_runner.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "runner/pooling.h"

namespace uniproc {
namespace {

// A short prompt.
constexpr int32_t kWarmUpTokens = 64;

// Distance between the ranks' random weight seeds: an odd number with irregular bits.
constexpr uint64_t kRankSeedStride = 0xD1B54A32D192ED03;

// Keys of the graphs for a padded number of rows: whole steps without logprobs, and otherwise the
// forward pass and the sampler apart, so that three graphs at most have a forward pass; those again
// for batches with few keys.
enum class GraphPart : uint8_t { kForward, kSampler, kStep };
constexpr int32_t kForwardGraphsPerSize = 3;
int32_t graphKey(GraphPart part, int32_t rows, const SampledFeatures& features,
                 bool hasFewKeys = false) {
  const int32_t variant = (features.truncation ? 2 : 0) + (features.logprobs ? 1 : 0);
  return 32 * rows + (hasFewKeys ? 16 : 0) + 4 * static_cast<int32_t>(part) + variant;
}

[[noreturn]] void throwState(const std::string& message) { throw Error("INVALID_STATE", message); }

void requireListMemory(const ModelLimits& limits) {
  constexpr int64_t kMax = RequestLimits::kMaxListMemory;
  if (limits.listMemoryBytes >= 0 && limits.listMemoryBytes <= kMax) return;
  throw Error("CONFIG_INVALID", "listMemoryBytes is " + std::to_string(limits.listMemoryBytes) +
                                    "; it must be from 0 to " + std::to_string(kMax));
}

}  // namespace

ModelRunner::Workspace::Workspace(Ops& ops, const ModelSpec& spec, const ModelLimits& limits,
                                  const std::vector<std::shared_ptr<StepBuffers>>& stepBuffers)
    : slots(ops, spec, limits), inputs(ops, limits) {
  for (const auto& step : stepBuffers) steps.push_back(pin(ops, step->data(), step->bytes()));
  const size_t rows = limits.maxNumSeqs;
  const auto allocate = [&ops](size_t count) {
    return Buffer(ops, count * sizeof(int32_t), "the sampling outputs");
  };
  bitmask = allocate(rows * ModelLimits::ceilDiv(spec.vocabSize, 32));
  sampled = allocate(2 * rows);
  logprobTokenIds = allocate(rows * (1 + limits.maxLogprobs));
  logprobs = allocate(rows * (1 + limits.maxLogprobs));
  logprobRanks = allocate(rows);
}

Logprobs ModelRunner::Workspace::logprobsOut(const ModelLimits& limits) const {
  return {logprobTokenIds.as<int32_t>(), logprobs.as<float>(), logprobRanks.as<int32_t>(),
          limits.maxLogprobs};
}

void ModelRunner::Workspace::copyLogprobs(Ops& ops, int32_t first, int32_t count,
                                          const ModelLimits& limits, std::span<int32_t> outTokenIds,
                                          std::span<float> outLogprobs,
                                          std::span<int32_t> outRanks) const {
  const size_t width = 1 + limits.maxLogprobs;
  const size_t bytes = count * width * sizeof(int32_t);
  ops.copyToPinned(outTokenIds.data() + first * width, logprobTokenIds.data(), bytes);
  ops.copyToPinned(outLogprobs.data() + first * width, logprobs.data(), bytes);
  ops.copyToPinned(outRanks.data() + first, logprobRanks.data(), count * sizeof(int32_t));
}

ModelRunner::ModelRunner(const ModelSpec& spec, const ModelLimits& limits,
                         std::shared_ptr<DeviceCommunicator> communicator)
    : communicator_(communicator && communicator->worldSize() > 1 ? std::move(communicator)
                                                                  : nullptr),
      shard_(spec, communicator_ ? communicator_->rank() : 0,
             communicator_ ? communicator_->worldSize() : 1),
      limits_(limits),
      parameters_(shard_),
      decoder_(shard_, parameters_) {
  limits.check(spec.numLayers);
  requireListMemory(limits);
  for (int32_t i = 0; i < limits.numSteps; ++i) {
    steps_.push_back(std::make_shared<StepBuffers>(limits, pooledWidth()));
  }
}

void ModelRunner::load(Ops& ops, const std::vector<std::string>& files,
                       const std::vector<ParameterSource>& sources,
                       const Parameters::Progress& progress, StopToken stop) {
  fillWeights(ops, [&] { parameters_.load(ops, files, sources, progress, std::move(stop)); });
}

void ModelRunner::loadDummy(Ops& ops, uint64_t seed) {
  const auto rank = static_cast<uint64_t>(shard_.rank());
  fillWeights(ops, [&] { parameters_.fillRandom(ops, seed + rank * kRankSeedStride); });
}

template <typename Fill>
void ModelRunner::fillWeights(Ops& ops, Fill fill) {
  requireNoWeights();
  fill();
  if (workspace_) return;
  try {
    decoder_.allocate(ops, limits_, communicator());
    workspace_.emplace(ops, spec(), limits_, steps_);
  } catch (...) {
    decoder_.release();
    parameters_.release();
    throw;
  }
}

// The communicator to the other ranks, or null for a single rank. Throws Error SHUT_DOWN if it was
// released.
Communicator* ModelRunner::communicator() const {
  return communicator_ ? &communicator_->get() : nullptr;
}

void ModelRunner::requireNoWeights() const {
  if (parameters_.isAllocated() || offloadedWeights_) {
    throwState("the weights are already loaded; release them first");
  }
}

void ModelRunner::requireWeights() const {
  if (!parameters_.isAllocated()) throwState("the model's weights are not loaded; call load first");
}

void ModelRunner::releaseWeights() {
  graphs_.reset();
  parameters_.release();
  offloadedWeights_.reset();
}

void ModelRunner::offloadWeights(Ops& ops) {
  if (!parameters_.isAllocated()) {
    throwState("no weights are on the device to offload; load or restore them first");
  }
  auto copy = parameters_.toHost(ops);
  releaseWeights();
  offloadedWeights_ = std::move(copy);
}

void ModelRunner::restoreWeights(Ops& ops) {
  if (!offloadedWeights_) throwState("no weights are in host memory; call offloadWeights first");
  parameters_.fromHost(ops, *offloadedWeights_);
  offloadedWeights_.reset();
}

void ModelRunner::allocateKvCache(Ops& ops, int32_t numBlocks) {
  if (cache_) throwState("the KV cache is already allocated; release it first");
  if (numBlocks < 1)
    throwState("the KV cache needs at least 1 block, got " + std::to_string(numBlocks));
  cache_.emplace(ops, shard_, limits_, numBlocks);
}

void ModelRunner::releaseKvCache() {
  graphs_.reset();
  cache_.reset();
  if (workspace_) workspace_->slots.forgetBlocks();
}

void ModelRunner::release() noexcept {
  launched_.reset();
  graphs_.reset();
  cache_.reset();
  workspace_.reset();
  decoder_.release();
  releaseWeights();
}

ModelRunner::Workspace& ModelRunner::requireWorkspace() {
  if (!workspace_) throwState("the model is not loaded; call load first");
  return *workspace_;
}

ModelRunner::StepContext ModelRunner::requireStepContext(Ops& ops, int32_t step) {
  requireWeights();
  if (!cache_) throwState("the KV cache is not allocated; call allocateKvCache first");
  if (step < 0 || step >= limits_.numSteps) {
    throwState("step " + std::to_string(step) + " does not exist; the model has " +
               std::to_string(limits_.numSteps) + " step buffers");
  }
  if (!graphs_ && !limits_.enforceEager) graphs_ = ops.makeGraphs();
  return {*steps_[step], requireWorkspace().slots, *cache_, graphs_.get(),
          Decoder::Depth::kAllLayers};
}

template <typename Body>
void ModelRunner::deferError(Body body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() == "DEVICE_FAILED") throw;
    if (!error_) error_ = std::current_exception();
  } catch (...) {
    if (!error_) error_ = std::current_exception();
  }
}

void ModelRunner::checkRequest(const Request& request) const {
  RequestLimits(spec(), limits_).check(request);
}

void ModelRunner::addRequest(Ops& ops, int32_t slot, const Request& request) {
  deferError(
      [&] { requireWorkspace().slots.add(ops, slot, request, cache_ ? cache_->numBlocks() : 0); });
}

void ModelRunner::removeRequest(int32_t slot) {
  deferError([&] { requireWorkspace().slots.remove(slot); });
}

void ModelRunner::forward(Ops& ops, const StepLaunch& launch) {
  deferError([&] {
    const std::optional<Launched> waiting = std::exchange(launched_, Launched{launch});
    if (waiting) {
      throwState("step " + std::to_string(launch.step) + " is launched while step " +
                 std::to_string(waiting->launch.step) + " waits to be sampled");
    }
    if (error_) return;
    const StepContext context = requireStepContext(ops, launch.step);
    ops.beginStep();
    runForward(ops, *launched_, context);
  });
}

void ModelRunner::sample(Ops& ops, int32_t step, const std::vector<int32_t>* bitmask,
                         Ops::Done done) {
  const std::optional<Launched> launched = std::exchange(launched_, std::nullopt);
  try {
    if (const std::exception_ptr error = std::exchange(error_, nullptr)) {
      std::rethrow_exception(error);
    }
    if (!launched || launched->launch.step != step) {
      throwState("step " + std::to_string(step) + " is sampled, but was not launched before");
    }
    runSample(ops, *launched, requireStepContext(ops, step), bitmask);
    if (spec().poolsLastToken) {
      done = [buffers = steps_[step], count = launched->launch.numSampled, width = pooledWidth(),
              type = decoder_.activationType(), done = std::move(done)](std::exception_ptr error) {
        if (!error) poolRows(*buffers, count, width, type);
        done(error);
      };
    }
    ops.endStep(std::move(done));
  } catch (...) {
    ops.synchronize();  // the step's buffers are free once the error is thrown
    throw;
  }
}

std::vector<float> ModelRunner::logits(Ops& ops, int32_t numRows) {
  if (error_ || !launched_)
    throwState("there are no logits: no launched step is waiting for sample");
  if (spec().poolsLastToken) throwState("there are no logits: the model makes embeddings");
  if (numRows < 1 || numRows > launched_->launch.numSampled) {
    throwState("logits are available for " + std::to_string(launched_->launch.numSampled) +
               " rows, not for " + std::to_string(numRows));
  }
  std::vector<float> logits(int64_t{numRows} * spec().vocabSize);
  ops.copyToHost(logits.data(), decoder_.logits(), logits.size() * sizeof(float));
  ops.synchronize();
  return logits;
}

void ModelRunner::runForward(Ops& ops, Launched& launched, const StepContext& context) {
  static_cast<void>(communicator());  // throws if it was released
  const StepLaunch& launch = launched.launch;
  if (spec().poolsLastToken && launch.numPromptLogprobRows > 0) {
    throwState("there are no logprobs: the model makes embeddings");
  }
  const int32_t rows = launched.graphRows = graphRows(launch, context);
  BatchInputs& inputs = workspace_->inputs;
  const RequestTable& requests = context.slots.table();
  const Batch batch =
      inputs.prepare(context.step, launch, context.slots, context.cache.numBlocks(), rows);
  for (const int32_t slot : inputs.sampledSlots(launch.step, launch.numSampled)) {
    launched.features |= context.slots.at(slot).features;
  }
  launched.isSampled = rows > 0 && !launch.awaitsBitmask && !launched.features.logprobs;
  ops.prepareInputs(inputs.copy(), requests, inputs.blockUpdates(), launch.numBlockUpdates,
                    limits_.blockSize, batch);
  if (batch.numTokens == 0) return;
  const auto forward = [&] {
    decoder_.forward(ops, context.cache, requests, batch, context.depth);
    if (launch.numPromptLogprobRows > 0) promptLogprobs(ops, launch, context);
    const int32_t numSampled = std::max(launch.numSampled, rows);
    if (numSampled > 0) {
      // One token for each sampled row: the last tokens are all tokens, in order.
      const bool samplesAll = numSampled == batch.numTokens && launch.numPromptLogprobRows == 0;
      const int32_t* index = samplesAll ? nullptr : inputs.lastTokens();
      if (spec().poolsLastToken) {
        launched.states = decoder_.computeStates(ops, index, numSampled);
      } else {
        decoder_.computeLogits(ops, index, numSampled);
      }
    }
    if (launched.isSampled) sampleRows(ops, launched, context, nullptr);
  };
  if (rows == 0) return forward();
  const GraphPart part = launched.isSampled ? GraphPart::kStep : GraphPart::kForward;
  const SampledFeatures features = launched.isSampled ? launched.features : SampledFeatures{};
  context.graphs->launch(graphKey(part, rows, features, batch.hasFewKeys), forward);
}

// The size of the CUDA graph that a step runs in; 0 unless every row computes one token and
// samples, and the batch is a decode.
int32_t ModelRunner::graphRows(const StepLaunch& launch, const StepContext& context) const {
  const bool recurs = context.graphs && !spec().poolsLastToken && launch.numRows > 0 &&
                      launch.numRows <= limits_.maxNumSeqs && launch.numSampled == launch.numRows &&
                      launch.numBlockUpdates <= limits_.maxBlockUpdates() &&
                      launch.numPromptLogprobRows == 0 &&
                      BatchInputs::isDecode(context.step, launch, context.slots);
  return recurs ? paddedRows(launch.numRows) : 0;
}

// Rounds up to one of a few sizes, to limit the number of graphs.
int32_t ModelRunner::paddedRows(int32_t numRows) const {
  constexpr int32_t kUnit = 8;
  const int32_t padded = numRows <= kUnit ? static_cast<int32_t>(std::bit_ceil(uint32_t(numRows)))
                                          : ModelLimits::ceilDiv(numRows, kUnit) * kUnit;
  return std::min({padded, limits_.maxNumSeqs, limits_.maxNumBatchedTokens});
}

// A position's logits predict the next token, which is in the request table. Computes as many
// positions at a time as the logits buffer has rows.
void ModelRunner::promptLogprobs(Ops& ops, const StepLaunch& launch, const StepContext& context) {
  Workspace& work = *workspace_;
  const RequestTable& requests = context.slots.table();
  const int32_t* queryStarts = work.inputs.queryStarts(launch.step);
  int32_t numDone = 0;
  for (const int32_t row : context.step.promptLogprobRows.first(launch.numPromptLogprobRows)) {
    const int32_t slot = context.step.slots[row];
    const RequestSlots::Slot& request = context.slots.at(slot);
    const int32_t start = context.step.numComputedTokens[row];
    const int32_t numTokens = queryStarts[row + 1] - queryStarts[row];
    const int32_t end = std::min(start + numTokens, request.numPromptTokens - 1);
    const int32_t* tokenIds = requests.tokenIds + int64_t{slot} * requests.maxModelLen;
    for (int32_t position = start; position < end; position += limits_.maxNumSeqs) {
      const int32_t count = std::min(end - position, limits_.maxNumSeqs);
      const int32_t* index = work.inputs.tokensFrom(queryStarts[row] + position - start);
      const float* logits = decoder_.computeLogits(ops, index, count);
      ops.gatherLogprobs(logits, count, spec().vocabSize, tokenIds + position + 1,
                         std::max(0, request.numPromptLogprobs), work.numNans(limits_),
                         work.logprobsOut(limits_));
      work.copyLogprobs(ops, numDone, count, limits_, context.step.promptLogprobTokenIds,
                        context.step.promptLogprobs, context.step.promptLogprobRanks);
      ops.copyToHost(context.step.promptNumNans.data() + numDone, work.numNans(limits_),
                     count * sizeof(int32_t));
      numDone += count;
    }
  }
}

void ModelRunner::runSample(Ops& ops, const Launched& launched, const StepContext& context,
                            const std::vector<int32_t>* bitmask) {
  Workspace& work = *workspace_;
  const StepLaunch& launch = launched.launch;
  const int32_t count = launch.numSampled;
  if (spec().poolsLastToken) {
    if (count == 0) return;
    const size_t bytes = size_t(count) * pooledWidth() * sizeOf(decoder_.activationType());
    // In words of 4 bytes, as the copy moves them; both sides have room.
    ops.copyToPinned(context.step.pooled.data(), launched.states, (bytes + 3) / 4 * 4);
    return;
  }
  const int32_t* allowed = nullptr;
  if (bitmask && !launch.awaitsBitmask) {
    throwState("step " + std::to_string(launch.step) +
               " gets a bitmask; launch it with awaitsBitmask");
  }
  if (bitmask) {
    const int64_t words = int64_t{count} * ModelLimits::ceilDiv(spec().vocabSize, 32);
    if (static_cast<int64_t>(bitmask->size()) != words) {
      throwState("a bitmask for " + std::to_string(count) + " sampled rows has " +
                 std::to_string(bitmask->size()) + " words instead of " + std::to_string(words));
    }
    const HostToDevice mask{work.bitmask.data(), bitmask->data(), words * sizeof(int32_t)};
    ops.copyAllToDevice({&mask, 1});
    allowed = work.bitmask.as<int32_t>();
  }
  if (count > 0) {
    const auto sample = [&] { sampleRows(ops, launched, context, allowed); };
    if (launched.graphRows > 0 && !allowed) {
      const auto key = graphKey(GraphPart::kSampler, launched.graphRows, launched.features);
      if (!launched.isSampled) context.graphs->launch(key, sample);
    } else {
      sample();
    }
    // Copies the token ids, the gap and the NaN counts at once, to save a launch.
    ops.copyToPinned(context.step.sampledTokenIds.data(), work.sampled.data(),
                     (limits_.maxNumSeqs + count) * sizeof(int32_t));
    for (const int32_t slot : work.inputs.sampledSlots(launch.step, count)) {
      ++context.slots.at(slot).numTokens;
    }
    if (launched.features.logprobs) {
      work.copyLogprobs(ops, 0, count, limits_, context.step.logprobTokenIds, context.step.logprobs,
                        context.step.logprobRanks);
    }
  }
}

// Samples the launched rows, padded to its graph's size unless a bitmask keeps it out of a graph.
void ModelRunner::sampleRows(Ops& ops, const Launched& launched, const StepContext& context,
                             const int32_t* bitmask) {
  Workspace& work = *workspace_;
  const int32_t padded = bitmask ? 0 : launched.graphRows;
  ops.sample(decoder_.logits(), std::max(launched.launch.numSampled, padded), spec().vocabSize,
             work.inputs.sampledSlots(), context.slots.table(), bitmask, launched.features,
             work.sampled.as<int32_t>(), work.numNans(limits_), work.logprobsOut(limits_));
}

// All that a step of `numTokens` tokens in `numRows` rows allocates. Every row uses the most
// expensive sampling: truncation, penalties and logprobs.
struct ModelRunner::DummyStep {
  DummyStep(Ops& ops, const ModelRunner& runner, int32_t numRows, int32_t numTokens)
      : limits(limitsFor(runner.limits_, numRows, numTokens)),
        slots(ops, runner.spec(), limits),
        cache(PagedKvCache::forDummyRun(ops, runner.shard_, limits,
                                        numRows * limits.maxBlocksPerSeq())),
        buffers(runner.limits_, runner.pooledWidth()),
        pinned(pin(ops, buffers.data(), buffers.bytes())),
        launch{0, numRows, 0, numRows, 0} {
    const int32_t blocksPerRow = limits.maxBlocksPerSeq();
    Request request;
    request.sampling.topP = 0.9f;
    request.sampling.topK = 50;
    request.sampling.repetitionPenalty = 1.1f;
    request.sampling.numLogprobs = limits.maxLogprobs;
    const int32_t numGroups = limits.numKvCacheGroups();
    request.blockIds.resize(int64_t{blocksPerRow} * numGroups);
    for (int32_t row = 0; row < numRows; ++row) {
      const int32_t tokens = numTokens / numRows + (row < numTokens % numRows);
      request.tokenIds.assign(tokens, 0);
      request.numPromptTokens = tokens;
      for (int32_t i = 0; i < blocksPerRow * numGroups; ++i) {
        request.blockIds[i] = row * blocksPerRow + i / numGroups;  // the layers share memory anyway
      }
      slots.add(ops, row, request, cache.numBlocks());
      buffers.slots[row] = row;
      buffers.numScheduledTokens[row] = tokens;
      buffers.sampledRows[row] = row;
    }
  }

  static ModelLimits limitsFor(ModelLimits limits, int32_t numRows, int32_t numTokens) {
    limits.maxModelLen = ModelLimits::ceilDiv(numTokens, numRows) + 1;
    limits.listMemoryBytes = 0;
    return limits;
  }

  const ModelLimits limits;
  RequestSlots slots;
  const PagedKvCache cache;
  StepBuffers buffers;
  const PinnedMemory pinned;  // of the buffers
  const StepLaunch launch;
};

int32_t ModelRunner::largestRows() const {
  return std::min(limits_.maxNumSeqs, limits_.maxNumBatchedTokens);
}

int32_t ModelRunner::largestTokens() const {
  const int64_t most = int64_t{largestRows()} * limits_.maxModelLen;
  return static_cast<int32_t>(std::min<int64_t>(limits_.maxNumBatchedTokens, most));
}

size_t ModelRunner::profile(Ops& ops) {
  if (ops.preparesOnFirstUse()) {
    dummyRun(ops, largestRows(), largestTokens(), nullptr, Decoder::Depth::kOneOfEachKind);
    return graphBytes(ops, largestRows());
  }
  requireWeights();
  requireNoLaunch();
  DummyStep(ops, *this, largestRows(), largestTokens());
  decoder_.reserve(ops);
  return 0;
}

void ModelRunner::runLargestStep(Ops& ops) { dummyRun(ops, largestRows(), largestTokens()); }

// Upper bound of the graphs' memory: the size of the largest graphs for each size.
size_t ModelRunner::graphBytes(Ops& ops, int32_t numRows) {
  const std::unique_ptr<Graphs> graphs = limits_.enforceEager ? nullptr : ops.makeGraphs();
  if (!graphs) return 0;
  dummyRun(ops, numRows, numRows, graphs.get());
  const size_t before = ops.memory().free;
  dummyRun(ops, numRows, numRows, graphs.get());
  const size_t after = ops.memory().free;
  size_t numGraphs = 0;
  for (int32_t rows = 1; rows <= numRows; rows = paddedRows(rows) + 1) {
    const int32_t numKinds = rows <= Batch::kFewRows ? 2 : 1;  // with few keys, and with many
    numGraphs += numKinds * kForwardGraphsPerSize;
  }
  return numGraphs * (before - std::min(before, after));
}

void ModelRunner::warmUp(Ops& ops) {
  dummyRun(ops, 1, 1);
  if (!ops.preparesOnFirstUse()) return;
  dummyRun(ops, largestRows(), largestRows());
  dummyRun(ops, 1, std::min({kWarmUpTokens, limits_.maxNumBatchedTokens, limits_.maxModelLen}));
}

void ModelRunner::requireNoLaunch() const {
  if (launched_) throwState("a launched step is waiting for sample");
}

void ModelRunner::dummyRun(Ops& ops, int32_t numRows, int32_t numTokens, Graphs* graphs,
                           Decoder::Depth depth) {
  requireWeights();
  requireNoLaunch();
  ops.synchronize();  // a step in flight may still read the inputs' host memory
  DummyStep step(ops, *this, numRows, numTokens);
  const StepContext context{step.buffers, step.slots, step.cache, graphs, depth};
  Launched launched{step.launch};
  runForward(ops, launched, context);
  runSample(ops, launched, context, nullptr);
  ops.synchronize();
}

}  // namespace uniproc
