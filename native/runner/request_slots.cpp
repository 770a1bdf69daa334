#include "runner/request_slots.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace uniproc {
namespace {

[[noreturn]] void throwInvalid(const std::string& message) {
  throw Error("INVALID_STATE", message);
}

template <typename T>
size_t bytesOf(const std::vector<T>& values) {
  return values.size() * sizeof(T);
}

template <typename T>
HostToDevice copyOf(const std::vector<T>& values, T* to) {
  return {to, values.data(), bytesOf(values)};
}

template <typename T>
HostToDevice copyOf(const T& value, T* to) {
  return {to, &value, sizeof(value)};
}

int32_t sizeOf32(const std::vector<int32_t>& values) { return static_cast<int32_t>(values.size()); }

}  // namespace

RequestSlots::RequestSlots(Ops& ops, const ModelSpec& spec, const ModelLimits& limits)
    : limits_(spec, limits), slots_(limits.maxNumSeqs) {
  const size_t rows = slots_.size();
  const auto allocate = [&ops](size_t bytes) { return Buffer(ops, bytes, "the request table"); };
  tokenIds_ = allocate(rows * limits.maxModelLen * sizeof(int32_t));
  numTokens_ = allocate(rows * sizeof(int32_t));
  numPromptTokens_ = allocate(rows * sizeof(int32_t));
  const size_t tables = rows * limits.numKvCacheGroups();
  blockTable_ = allocate(tables * limits.maxBlocksPerSeq() * sizeof(int32_t));
  sampling_ = allocate(rows * sizeof(SamplingParams));
  slotLists_ = allocate(rows * RequestLimits::kSlotListBytes);
  if (limits.listMemoryBytes > 0) listMemory_ = allocate(limits.listMemoryBytes);
  table_ = {
      tokenIds_.as<int32_t>(),   numTokens_.as<int32_t>(),       numPromptTokens_.as<int32_t>(),
      blockTable_.as<int32_t>(), sampling_.as<SamplingParams>(), limits.maxNumSeqs,
      limits.maxModelLen,        limits.maxBlocksPerSeq(),       limits.numKvCacheGroups()};
}

RequestSlots::Slot& RequestSlots::at(int32_t slot) {
  if (slot < 0 || slot >= table_.maxNumSeqs) {
    throw Error("INVALID_STATE", "slot " + std::to_string(slot) + " does not exist; there are " +
                                     std::to_string(table_.maxNumSeqs));
  }
  return slots_[slot];
}

void RequestSlots::add(Ops& ops, int32_t slot, const Request& request, int32_t numCacheBlocks) {
  Slot& state = at(slot);
  state = {};
  limits_.check(request);
  checkNumBlocks(request.blockIds);
  std::vector<std::vector<int32_t>> blocks;
  for (int32_t group = 0; group < table_.numGroups; ++group) {
    blocks.push_back(blocksOfGroup(request.blockIds, group, numCacheBlocks));
  }

  const int32_t numTokens = sizeOf32(request.tokenIds);
  std::vector<HostToDevice> copies;
  const SamplingParams sampling = writeLists(slot, request, copies);
  const size_t row = slot;
  copies.push_back(copyOf(request.tokenIds, table_.tokenIds + row * table_.maxModelLen));
  copies.push_back(copyOf(numTokens, table_.numTokens + row));
  copies.push_back(copyOf(request.numPromptTokens, table_.numPromptTokens + row));
  for (int32_t group = 0; group < table_.numGroups; ++group) {
    int32_t* table = table_.ofGroup(group).blockTable;
    copies.push_back(copyOf(blocks[group], table + row * table_.maxBlocksPerSeq));
  }
  copies.push_back(copyOf(sampling, table_.sampling + row));
  ops.copyAllToDevice(copies);

  state.taken = true;
  state.numTokens = numTokens;
  state.numPromptTokens = request.numPromptTokens;
  state.numBlocks = sizeOf32(blocks.front());
  state.numPromptLogprobs = sampling.numPromptLogprobs;
  state.features = SampledFeatures::of(sampling, limits_.vocabSize);
}

void RequestSlots::remove(int32_t slot) { at(slot) = {}; }

void RequestSlots::forgetBlocks() {
  for (Slot& slot : slots_) {
    slot.numBlocks = 0;
    slot.hasRun = false;
  }
}

void RequestSlots::checkNumBlocks(const std::vector<int32_t>& blockIds) const {
  const auto numGroups = static_cast<size_t>(table_.numGroups);
  if (blockIds.size() > table_.maxBlocksPerSeq * numGroups) {
    throwInvalid("a request has " + std::to_string(blockIds.size() / numGroups) +
                 " blocks; its block table holds " + std::to_string(table_.maxBlocksPerSeq));
  }
  if (blockIds.size() % numGroups != 0) {
    throwInvalid("a request has " + std::to_string(blockIds.size()) +
                 " blocks; it must have as many of each of " + std::to_string(numGroups) +
                 " groups of layers");
  }
}

// Only the first blocks may be missing. Their entries are never used, but kernels may load them.
std::vector<int32_t> RequestSlots::blocksOfGroup(const std::vector<int32_t>& blockIds,
                                                 int32_t group, int32_t numCacheBlocks) const {
  std::vector<int32_t> blocks;
  bool mayBeMissing = true;
  for (size_t i = group; i < blockIds.size(); i += table_.numGroups) {
    const int32_t block = blockIds[i];
    mayBeMissing =
        mayBeMissing && block == Request::kNoBlock && i + table_.numGroups < blockIds.size();
    if (!mayBeMissing && (block < 0 || block >= numCacheBlocks)) {
      throwInvalid("a request refers to block " + std::to_string(block) + "; there are " +
                   std::to_string(numCacheBlocks));
    }
    blocks.push_back(std::max(block, 0));
  }
  return blocks;
}

// Returns the request's parameters, with its lists concatenated in their memory.
SamplingParams RequestSlots::writeLists(int32_t slot, const Request& request,
                                        std::vector<HostToDevice>& copies) const {
  SamplingParams sampling = request.sampling;
  std::byte* next = request.listOffset < 0
                        ? slotLists_.as<std::byte>() + slot * RequestLimits::kSlotListBytes
                        : listMemory_.as<std::byte>() + request.listOffset;
  const auto lay = [&]<typename T>(const std::vector<T>& values, const T*& list, int32_t& count) {
    count = static_cast<int32_t>(values.size());
    if (values.empty()) return;
    T* to = reinterpret_cast<T*>(next);
    list = to;
    copies.push_back(copyOf(values, to));
    next += bytesOf(values);
  };
  int32_t numBadWordsTokens = 0;
  lay(request.logitBiasTokenIds, sampling.logitBiasTokenIds, sampling.numLogitBiases);
  lay(request.logitBiases, sampling.logitBiases, sampling.numLogitBiases);
  lay(request.allowedTokenIds, sampling.allowedTokenIds, sampling.numAllowedTokenIds);
  lay(request.badWordsTokenIds, sampling.badWordsTokenIds, numBadWordsTokens);
  lay(request.badWordsEnds, sampling.badWordsEnds, sampling.numBadWords);
  lay(request.stopTokenIds, sampling.stopTokenIds, sampling.numStopTokenIds);
  return sampling;
}

}  // namespace uniproc
