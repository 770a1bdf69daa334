#include "runner/batch_inputs.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/error.h"

namespace uniproc {
namespace {

[[noreturn]] void throwInvalid(const std::string& message) {
  throw Error("INVALID_STATE", message);
}

// The entries of whole vectors of 16 bytes.
size_t roundedUp(size_t entries) { return (entries + 3) / 4 * 4; }

void requireCount(const char* what, int32_t count, int32_t most) {
  if (count >= 0 && count <= most) return;
  throwInvalid("a step has " + std::to_string(count) + " " + what + "; the maximum is " +
               std::to_string(most));
}

// Requires row indices to be valid and ascending.
void requireRows(const char* what, std::span<const int32_t> rows, int32_t numRows) {
  int32_t previous = -1;
  for (const int32_t row : rows) {
    if (row <= previous || row >= numRows) {
      throwInvalid("a step of " + std::to_string(numRows) + " rows has " + what + " row " +
                   std::to_string(row) + " after " + std::to_string(previous));
    }
    previous = row;
  }
}

}  // namespace

BatchInputs::BatchInputs(Ops& ops, const ModelLimits& limits)
    : limits_(limits),
      numBlocks_(static_cast<size_t>(limits.numKvCacheGroups()) * limits.maxNumSeqs),
      lastPrepared_(limits.maxNumSeqs, 0) {
  const size_t entries =
      roundedUp(size_t{5} * limits.maxNumSeqs + 1 + size_t{3} * limits.maxBlockUpdates());
  const size_t tokens = limits.maxNumBatchedTokens;
  const auto allocate = [&ops](size_t count) {
    return Buffer(ops, count * sizeof(int32_t), "a step's inputs");
  };
  for (int32_t i = 0; i < limits.numSteps; ++i) {
    hosts_.emplace_back(ops, entries * sizeof(int32_t), "a step's inputs");
  }
  device_ = allocate(entries);
  tokenIds_ = allocate(tokens);
  positions_ = allocate(tokens);
  cacheSlots_ = allocate(tokens * limits.numKvCacheGroups());
  allTokens_ = allocate(tokens);
  std::vector<int32_t> indices(tokens);
  std::iota(indices.begin(), indices.end(), 0);
  ops.copyToDevice(allTokens_.data(), indices.data(), tokens * sizeof(int32_t));
}

Batch BatchInputs::prepare(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots,
                           int32_t numCacheBlocks, int32_t numRows) {
  requireCount("rows", launch.numRows, limits_.maxNumSeqs);
  requireCount("block updates", launch.numBlockUpdates, limits_.maxBlockUpdates());
  requireCount("sampled rows", launch.numSampled, launch.numRows);
  requireCount("rows with prompt logprobs", launch.numPromptLogprobRows, launch.numRows);
  requireRows("sampled", step.sampledRows.first(launch.numSampled), launch.numRows);
  requireRows("prompt logprob", step.promptLogprobRows.first(launch.numPromptLogprobRows),
              launch.numRows);
  const bool isDecodeStep = isDecode(step, launch, slots);
  countBlocks(step, launch, slots, numCacheBlocks);
  int32_t numTokens = fillRows(step, launch, slots);
  fillSampled(step, launch, slots);
  numRows = std::max(numRows, launch.numRows);
  numTokens += numRows - launch.numRows;
  pad(launch, numRows);
  for (int32_t i = 0; i < launch.numBlockUpdates; ++i) {
    const int32_t slot = step.blockUpdates[3 * i] % limits_.maxNumSeqs;
    slots.at(slot).numBlocks = numBlocks(slot);
  }
  for (int32_t row = 0; row < launch.numRows; ++row) slots.at(step.slots[row]).hasRun = true;

  const int32_t* first = host(launch.step, kSlots);
  int32_t* updates = host(launch.step, kQueryStarts) + limits_.maxNumSeqs + 1;
  const int32_t* end = std::copy_n(step.blockUpdates.data(), 3 * launch.numBlockUpdates, updates);
  copy_ = {device_.data(), first, roundedUp(end - first) * sizeof(int32_t)};
  int32_t maxQueryLen = 0;
  int32_t numDecodeRows = 0;
  for (const int32_t scheduled : step.numScheduledTokens.first(launch.numRows)) {
    maxQueryLen = std::max(maxQueryLen, scheduled);
    numDecodeRows += scheduled == 1;
  }
  return {numRows,
          numTokens,
          device(kSlots),
          device(kNumComputedTokens),
          device(kQueryStarts),
          tokenIds_.as<int32_t>(),
          positions_.as<int32_t>(),
          cacheSlots_.as<int32_t>(),
          maxQueryLen,
          numDecodeRows,
          isDecodeStep,
          hasFewKeys(step, launch, numRows),
          limits_.maxNumBatchedTokens};
}

bool BatchInputs::hasFewKeys(const StepBuffers& step, const StepLaunch& launch, int32_t numRows) {
  if (numRows > Batch::kFewRows) return false;
  int32_t maxKeys = 0;
  for (int32_t row = 0; row < launch.numRows; ++row) {
    maxKeys = std::max(maxKeys, step.numComputedTokens[row] + step.numScheduledTokens[row]);
  }
  return int64_t{numRows} * maxKeys <= Batch::kFewKeys;
}

bool BatchInputs::isDecode(const StepBuffers& step, const StepLaunch& launch, RequestSlots& slots) {
  for (int32_t row = 0; row < launch.numRows; ++row) {
    if (step.numScheduledTokens[row] != 1) return false;
    if (step.numComputedTokens[row] > 0 && !slots.at(step.slots[row]).hasRun) return false;
  }
  for (int32_t i = 0; i < launch.numBlockUpdates; ++i) {
    const int32_t slot = step.blockUpdates[3 * i] % slots.table().maxNumSeqs;
    if (step.blockUpdates[3 * i + 1] < slots.at(slot).numBlocks) return false;
  }
  return true;
}

void BatchInputs::countBlocks(const StepBuffers& step, const StepLaunch& launch,
                              RequestSlots& slots, int32_t numCacheBlocks) {
  const auto numTables = static_cast<int32_t>(numBlocks_.size());
  for (int32_t slot = 0; slot < limits_.maxNumSeqs; ++slot) {
    const int32_t count = slots.at(slot).numBlocks;
    for (int32_t table = slot; table < numTables; table += limits_.maxNumSeqs) {
      numBlocks_[table] = count;
    }
  }
  for (int32_t i = 0; i < launch.numBlockUpdates; ++i) {
    const auto update = step.blockUpdates.subspan(3 * i, 3);
    const int32_t table = update[0];
    const int32_t slot = table < numTables ? table % limits_.maxNumSeqs : table;
    const bool taken = slots.at(slot).taken;
    const int32_t most = std::min(numBlocks_[table], limits_.maxBlocksPerSeq() - 1);
    if (!taken || update[1] < 0 || update[1] > most || update[2] < 0 ||
        update[2] >= numCacheBlocks) {
      throwInvalid("block update " + std::to_string(i) + " of a step puts block " +
                   std::to_string(update[2]) + " of " + std::to_string(numCacheBlocks) +
                   " at index " + std::to_string(update[1]) + " for slot " + std::to_string(slot) +
                   (taken ? ", which can take indices up to " + std::to_string(most)
                          : ", which holds no request"));
    }
    numBlocks_[table] = std::max(numBlocks_[table], update[1] + 1);
  }
}

int32_t BatchInputs::numBlocks(int32_t slot) const {
  int32_t count = numBlocks_[slot];
  for (size_t table = slot; table < numBlocks_.size(); table += limits_.maxNumSeqs) {
    count = std::min(count, numBlocks_[table]);
  }
  return count;
}

int32_t BatchInputs::fillRows(const StepBuffers& step, const StepLaunch& launch,
                              RequestSlots& slots) {
  int32_t* queryStarts = host(launch.step, kQueryStarts);
  int64_t numTokens = 0;
  ++numPrepared_;
  for (int32_t row = 0; row < launch.numRows; ++row) {
    const int32_t slot = step.slots[row];
    const int32_t computed = step.numComputedTokens[row];
    const int32_t scheduled = step.numScheduledTokens[row];
    const RequestSlots::Slot& request = slots.at(slot);
    const auto name = [&] {
      return "row " + std::to_string(row) + " of a step (slot " + std::to_string(slot) + ")";
    };
    if (!request.taken) throwInvalid(name() + " holds no request");
    if (lastPrepared_[slot] == numPrepared_) throwInvalid(name() + " appears twice in the step");
    lastPrepared_[slot] = numPrepared_;
    const int64_t end = int64_t{computed} + scheduled;
    if (computed < 0 || scheduled < 1 || end > request.numTokens) {
      throwInvalid(name() + " computes " + std::to_string(scheduled) + " tokens from " +
                   std::to_string(computed) + " on; the request has " +
                   std::to_string(request.numTokens));
    }
    const int32_t blocks = numBlocks(slot);
    if (end > int64_t{blocks} * limits_.blockSize) {
      throwInvalid(name() + " computes up to token " + std::to_string(end) + "; its " +
                   std::to_string(blocks) + " blocks hold " +
                   std::to_string(int64_t{blocks} * limits_.blockSize));
    }
    queryStarts[row] = static_cast<int32_t>(numTokens);
    numTokens += scheduled;
    if (numTokens > limits_.maxNumBatchedTokens) {
      throwInvalid("a step exceeds maxNumBatchedTokens, " +
                   std::to_string(limits_.maxNumBatchedTokens));
    }
  }
  queryStarts[launch.numRows] = static_cast<int32_t>(numTokens);
  std::copy_n(step.slots.data(), launch.numRows, host(launch.step, kSlots));
  std::copy_n(step.numComputedTokens.data(), launch.numRows, host(launch.step, kNumComputedTokens));
  return static_cast<int32_t>(numTokens);
}

void BatchInputs::fillSampled(const StepBuffers& step, const StepLaunch& launch,
                              RequestSlots& slots) {
  const int32_t* queryStarts = host(launch.step, kQueryStarts);
  for (int32_t i = 0; i < launch.numSampled; ++i) {
    const int32_t row = step.sampledRows[i];
    const int32_t slot = step.slots[row];
    const int32_t end = step.numComputedTokens[row] + step.numScheduledTokens[row];
    const int32_t numTokens = slots.at(slot).numTokens;
    const int32_t maxModelLen = slots.table().maxModelLen;
    if (end != numTokens || end >= maxModelLen) {
      throwInvalid("row " + std::to_string(row) + " of a step (slot " + std::to_string(slot) +
                   ") samples token " + std::to_string(end) + "; the request has " +
                   std::to_string(numTokens) + " tokens, and maxModelLen is " +
                   std::to_string(maxModelLen));
    }
    host(launch.step, kLastTokens)[i] = queryStarts[row + 1] - 1;
    host(launch.step, kSampledSlots)[i] = slot;
  }
}

void BatchInputs::pad(const StepLaunch& launch, int32_t numRows) {
  int32_t* queryStarts = host(launch.step, kQueryStarts);
  for (int32_t row = launch.numRows; row < numRows; ++row) {
    host(launch.step, kSlots)[row] = -1;
    host(launch.step, kNumComputedTokens)[row] = 0;
    host(launch.step, kLastTokens)[row] = row;
    host(launch.step, kSampledSlots)[row] = -1;
    queryStarts[row + 1] = queryStarts[row] + 1;
  }
}

const int32_t* BatchInputs::blockUpdates() const {
  return device(kQueryStarts) + limits_.maxNumSeqs + 1;
}
const int32_t* BatchInputs::lastTokens() const { return device(kLastTokens); }
const int32_t* BatchInputs::sampledSlots() const { return device(kSampledSlots); }

int32_t* BatchInputs::host(int32_t step, size_t array) const {
  return hosts_[step].as<int32_t>() + array * limits_.maxNumSeqs;
}

const int32_t* BatchInputs::device(size_t array) const {
  return device_.as<int32_t>() + array * limits_.maxNumSeqs;
}

}  // namespace uniproc
