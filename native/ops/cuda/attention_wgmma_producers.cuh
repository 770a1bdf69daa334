// The warps that fill the pipeline of prefill attention with wgmma: one hands out units and copies
// keys, one copies values, two copy queries.
#pragma once

#include <cstdint>

#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/attention_wgmma.cuh"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda::prefill {

// How keys and values are copied: a box is `boxKeys` adjacent keys of a block.
struct CacheMaps {
  CUtensorMap keys;
  CUtensorMap values;
  int32_t boxKeys;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A warp that copies keys or values of units.
template <class Tiles>
class TileCopier {
 public:
  __device__ TileCopier(const AttentionArgs& args, const CUtensorMap& map, int32_t boxKeys,
                        uint64_t* full, uint64_t* empty, uint32_t tiles)
      : args_(args),
        map_(map),
        boxKeys_(boxKeys),
        full_(full),
        empty_(empty),
        tiles_(tiles),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize) {}

  // The unit's tiles in descending order.
  __device__ void copy(const Unit& unit) {
    const int32_t* blocks = args_.blocksOf(unit.slot);
    const int32_t firstTile = unit.firstTile;
    const int32_t begin = unit.begin;
    const int32_t last = unit.endOfRow - 1;
    const int32_t kvHead = unit.kvHead;
    // This lane's box of a tile: its first cache slot / 8. Boxes outside the keys that exist repeat
    // the nearest box inside.
    const auto boxOf = [&](int32_t tile) {
      const int32_t key = max(min(tile * Tiles::kKeys + lane_ * boxKeys_, last), begin);
      return args_.cacheSlot(blocks, key) / boxKeys_ * (boxKeys_ / 8);
    };
    const auto boxBytes = static_cast<uint32_t>(boxKeys_ / 8) * Tiles::kGroupBytes;
    int32_t tile = unit.lastTile;
    for (int32_t box = boxOf(tile); tile >= firstTile; --tile) {
      const int32_t nextBox = tile > firstTile ? boxOf(tile - 1) : 0;
      uint64_t& full = full_[stage_.index];
      waitForPhase(empty_[stage_.index], stage_.parity ^ 1);
      if (lane_ == 0) arriveExpecting(full, Tiles::kKeyBytes);
      uint32_t to = tiles_ + stage_.index * Tiles::kKeyBytes;
      for (int32_t i = 0; i < Tiles::kKeys / boxKeys_; ++i) {
        const int32_t group = __shfl_sync(kAllLanes, box, i);
        if (lane_ == 0) copyBox(to, map_, full, 0, 0, 0, group, kvHead);
        to += boxBytes;
      }
      stage_.advance();
      box = nextBox;
    }
  }

 private:
  const AttentionArgs& args_;
  const CUtensorMap& map_;
  int32_t boxKeys_;
  uint64_t* full_;
  uint64_t* empty_;
  uint32_t tiles_;
  int lane_;
  Stage<Tiles::kStages> stage_;
};

// Block b takes the units b, 2 B - 1 - b, 2 B + b, ... of a grid of B blocks.
template <class Tiles>
__device__ inline void produceUnitsAndKeys(const AttentionArgs& args, const CacheMaps& maps,
                                           int32_t numRows, Shared<Tiles>& shared, uint32_t tiles) {
  const bool leads = threadIdx.x % kWarpSize == 0;
  UnitFinder<Tiles> finder(args, numRows, shared.rows);
  TileCopier<Tiles> copier(args, maps.keys, maps.boxKeys, shared.keysFull, shared.keysEmpty,
                           Tiles::keys(tiles, 0));
  Stage<kUnitStages> stage;
  for (int32_t round = 0;; ++round) {
    const auto blocks = static_cast<int32_t>(gridDim.x);
    const auto block = static_cast<int32_t>(blockIdx.x);
    const Unit found = finder.find(round * blocks + (round % 2 == 0 ? block : blocks - 1 - block));
    Unit& unit = shared.units[stage.index];
    waitForPhase(shared.unitEmpty[stage.index], stage.parity ^ 1);
    if (leads) unit = found;
    if (round == 0) waitForPrevious();  // the batch may be read before, the cache may not
    if (leads) arrive(shared.unitFull[stage.index]);
    __syncwarp();
    if (unit.slot < 0) return;
    copier.copy(unit);
    stage.advance();
  }
}

// Calls run(unit) for each unit of the block. Called by whole warps other than the one above.
template <class Tiles, class Run>
__device__ inline void forEachUnit(Shared<Tiles>& shared, Run run) {
  for (Stage<kUnitStages> stage;; stage.advance()) {
    waitForPhase(shared.unitFull[stage.index], stage.parity);
    const Unit& unit = shared.units[stage.index];
    if (unit.slot < 0) return;
    run(unit);
    __syncwarp();
    if (threadIdx.x % kWarpSize == 0) arrive(shared.unitEmpty[stage.index]);
  }
}

template <class Tiles>
__device__ inline void produceValues(const AttentionArgs& args, const CacheMaps& maps,
                                     Shared<Tiles>& shared, uint32_t tiles) {
  waitForPrevious();
  TileCopier<Tiles> copier(args, maps.values, maps.boxKeys, shared.valuesFull, shared.valuesEmpty,
                           Tiles::values(tiles, 0));
  forEachUnit(shared, [&](const Unit& unit) { copier.copy(unit); });
}

// `thread`: index among the threads of these warps. Queries past the unit's end become zero.
template <class Tiles>
__device__ inline void produceQueries(const AttentionArgs& args, Shared<Tiles>& shared,
                                      uint32_t tiles, uint32_t thread) {
  using T = typename Tiles::Element;
  constexpr uint32_t kParts = Tiles::kHeadDim / 8;  // 16-byte parts of a row
  constexpr uint32_t kRowsAtOnce = Tiles::kLoaderWarps * kWarpSize / kParts;
  waitForPrevious();
  Stage<Tiles::kQueryStages> stage;
  forEachUnit(shared, [&](const Unit& unit) {
    const int32_t firstToken = unit.firstToken;
    const int32_t firstQuery = unit.firstQuery;
    const int32_t numQueries = unit.numQueries;
    const int32_t firstHead = unit.kvHead * args.group;
    waitForPhase(shared.queriesEmpty[stage.index], stage.parity ^ 1);
    const uint32_t part = thread % kParts;
    const uint32_t to = Tiles::queries(tiles, stage.index) + part / 8 * Tiles::kQueryHalfBytes;
    const T* qkv = static_cast<const T*>(args.qkv) + part * 8;
#pragma unroll 4
    for (uint32_t row = thread / kParts; row < Tiles::kQueries; row += kRowsAtOnce) {
      const bool exists = static_cast<int32_t>(row) < numQueries;
      const int32_t query = firstQuery + (exists ? static_cast<int32_t>(row) : 0);
      const int32_t token = query / args.group;
      const int32_t head = firstHead + query - token * args.group;
      copyAsync(to + row * 128 + ((part % 8) ^ (row % 8)) * 16,
                qkv + (firstToken + token) * args.qkvWidth + head * Tiles::kHeadDim,
                exists ? 0 : -1);
    }
    commitCopies();
    waitForCopies<0>();
    fenceSharedWrites();
    arrive(shared.queriesFull[stage.index]);
    stage.advance();
  });
}

#endif

}  // namespace uniproc::cuda::prefill
