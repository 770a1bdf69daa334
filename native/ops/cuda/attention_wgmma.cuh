// Tiles, pipeline and units of work of prefill attention with wgmma (attention_prefill_wgmma.cu).
#pragma once

#include <cstdint>

#include "ops/cuda/attention.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/mbarrier.cuh"
#include "ops/cuda/wgmma.cuh"

namespace uniproc::cuda::prefill {

// Sizes of the tiles, and their places in shared memory, for kConsumerGroups warpgroups that
// compute. A tile consists of atoms of 8 rows of 64 elements (wgmma.cuh). Queries: [headDim /
// 64][kQueries / 8] atoms. Keys and values: [kKeys / 8][headDim / 64] atoms, so that one copy moves
// all columns of adjacent keys.
template <class ElementType, int kHeadDimension, int kConsumerGroups>
struct Tiles {
  static_assert(kHeadDimension == 64 || kHeadDimension == 128);
  static_assert(kConsumerGroups <= 2 || (kConsumerGroups == 3 && kHeadDimension == 64));
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kConsumers = kConsumerGroups;
  static constexpr int32_t kQueries = kConsumers * 64;
  static constexpr int32_t kKeys = 128;
  // Heads of 128: queries move to registers at the start of a unit, which leaves shared memory for
  // a third tile of keys and values. Heads of 64: registers are short, shared memory is not.
  static constexpr bool kQueriesInRegisters = kHeadDim == 128;
  static constexpr uint32_t kQueryStages = kQueriesInRegisters ? 1 : 2;  // tiles in flight
  static constexpr uint32_t kStages = kQueriesInRegisters ? 3 : 4;  // the same, keys and values

  static constexpr int kThreads = (kConsumers + 1) * kWarpgroupSize;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kLoaderWarps = 2;  // of queries
  // Multiples of 8 that fill the 65,536 registers of a multiprocessor. A single warpgroup needs no
  // redistribution.
  static constexpr bool kMovesRegisters = kConsumers > 1;
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;

  static constexpr uint32_t kAtomBytes = 1024;
  static constexpr uint32_t kHalves = kHeadDim / 64;             // atoms across a row
  static constexpr uint32_t kGroupBytes = kHalves * kAtomBytes;  // 8 keys or values
  static constexpr uint32_t kKeyBytes = kKeys / 8 * kGroupBytes;
  static constexpr uint32_t kQueryHalfBytes = kQueries * 128;
  static constexpr uint32_t kQueryBytes = kHalves * kQueryHalfBytes;
  static constexpr uint32_t kBytes =
      kQueryStages * kQueryBytes + 2 * kStages * kKeyBytes + kAtomBytes;

  // Shared addresses of a stage's tiles.
  __device__ static uint32_t queries(uint32_t tiles, uint32_t stage) {
    return tiles + stage * kQueryBytes;
  }
  __device__ static uint32_t keys(uint32_t tiles, uint32_t stage) {
    return tiles + kQueryStages * kQueryBytes + stage * kKeyBytes;
  }
  __device__ static uint32_t values(uint32_t tiles, uint32_t stage) {
    return keys(tiles, kStages + stage);
  }
};

// A tile of query rows and the keys that it attends to. Query i is head kvHead * group + i % group
// of its row's token i / group. Keys from `begin` on are attended to by at least one query, keys
// [beginOfLast, endOfFirst) by all. Key tile t has the keys [t kKeys, (t + 1) kKeys).
struct Unit {
  int32_t slot;  // of the request; negative: no more units
  int32_t firstToken;
  int32_t numComputed;
  int32_t firstQuery;
  int32_t numQueries;
  int32_t kvHead;
  int32_t begin;
  int32_t beginOfLast;
  int32_t endOfFirst;
  int32_t endOfRow;   // keys of the request that exist
  int32_t firstTile;  // of keys
  int32_t lastTile;
};

constexpr uint32_t kUnitStages = 2;

// The pipeline's barriers: producers end a phase of `full`, consumers one of `empty`.
template <class Tiles>
struct Shared {
  uint64_t unitFull[kUnitStages];
  uint64_t unitEmpty[kUnitStages];
  uint64_t queriesFull[Tiles::kQueryStages];
  uint64_t queriesEmpty[Tiles::kQueryStages];
  uint64_t keysFull[Tiles::kStages];
  uint64_t keysEmpty[Tiles::kStages];
  uint64_t valuesFull[Tiles::kStages];
  uint64_t valuesEmpty[Tiles::kStages];
  Unit units[kUnitStages];
  int32_t rows[kWarpSize];  // of UnitFinder
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class Tiles>
__device__ inline void initBarriers(Shared<Tiles>& shared) {
  for (uint32_t i = 0; i < kUnitStages; ++i) {
    initBarrier(shared.unitFull[i], 1);
    initBarrier(shared.unitEmpty[i], 1 + Tiles::kLoaderWarps + Tiles::kConsumerWarps);
  }
  for (uint32_t i = 0; i < Tiles::kQueryStages; ++i) {
    initBarrier(shared.queriesFull[i], Tiles::kLoaderWarps * kWarpSize);
    initBarrier(shared.queriesEmpty[i], Tiles::kConsumerWarps);
  }
  for (uint32_t i = 0; i < Tiles::kStages; ++i) {
    initBarrier(shared.keysFull[i], 1);
    initBarrier(shared.keysEmpty[i], Tiles::kConsumerWarps);
    initBarrier(shared.valuesFull[i], 1);
    initBarrier(shared.valuesEmpty[i], Tiles::kConsumerWarps);
  }
  fenceBarrierInit();
}

// Numbers the units by descending position of their last key, which is the order of their work, so
// that blocks that take them in turns finish together. Used by one whole warp, with ascending
// numbers. Sorts 32 rows at a time, each lane one row with several queries.
template <class Tiles>
class UnitFinder {
 public:
  // numRows: rows with several queries. `rows`: shared memory for one row number per lane.
  __device__ UnitFinder(const AttentionArgs& args, int32_t numRows, int32_t* rows)
      : args_(args),
        rows_(rows),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        rowsLeft_(numRows) {
    takeRows();
  }

  // slot < 0 if there is no such unit.
  __device__ Unit find(int32_t unit) {
    Unit found{};
    found.slot = -1;
    while (unit >= before_ + units_) {
      if (rowsLeft_ <= 0) return found;
      before_ += units_;
      takeRows();
    }
    const int32_t index = (unit - before_) / args_.numKvHeads;
    found.kvHead = (unit - before_) % args_.numKvHeads;
    // The largest key tile at which or after which more than `index` tiles of queries end.
    int32_t keyTile = 0;
    for (int32_t high = numKeyTiles_; high - keyTile > 1;) {
      const int32_t middle = (keyTile + high) / 2;
      (sumOf(tilesFrom(middle)) > index ? keyTile : high) = middle;
    }
    // Those that end in this key tile, by row, a row's later ones first.
    const int32_t later = tilesFrom(keyTile + 1);
    const int32_t own = tilesFrom(keyTile) - later;
    const int32_t indexOfKeyTile = index - sumOf(later);
    int32_t sum = own;  // of this lane and lower ones
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int32_t other = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane_ >= offset) sum += other;
    }
    const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, indexOfKeyTile < sum))) - 1;
    const int32_t tile =
        __shfl_sync(kAllLanes, numTiles_ - later - 1 + sum - own, lane) - indexOfKeyTile;

    const int32_t row = __shfl_sync(kAllLanes, row_, lane);
    const int32_t numQueries = __shfl_sync(kAllLanes, numQueries_, lane);
    found.slot = args_.slots[row];
    found.firstToken = args_.queryStarts[row];
    found.numComputed = __shfl_sync(kAllLanes, numComputed_, lane);
    found.firstQuery = tile * Tiles::kQueries;
    found.numQueries = min(numQueries - found.firstQuery, Tiles::kQueries);
    const int32_t first = found.numComputed + found.firstQuery / args_.group;
    const int32_t last =
        found.numComputed + (found.firstQuery + found.numQueries - 1) / args_.group;
    found.begin = args_.firstKey(first);
    found.beginOfLast = args_.firstKey(last);
    found.endOfFirst = first + 1;
    found.endOfRow = found.numComputed + numQueries / args_.group;
    found.firstTile = found.begin / Tiles::kKeys;
    found.lastTile = last / Tiles::kKeys;
    return found;
  }

 private:
  __device__ static int32_t sumOf(int32_t value) {
    return static_cast<int32_t>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(value)));
  }

  // Tiles of queries of this lane's row with a last key in key tile `keyTile` or later.
  __device__ int32_t tilesFrom(int32_t keyTile) const {
    const int32_t token = keyTile * Tiles::kKeys - numComputed_;  // the first with such a key
    if (token <= 0) return numTiles_;
    const int32_t query = token * args_.group;
    return query < numQueries_ ? numTiles_ - query / Tiles::kQueries : 0;
  }

  // Gives each lane one of the next 32 rows with several queries.
  __device__ void takeRows() {
    int32_t count = 0;
    while (count < min(kWarpSize, rowsLeft_) && nextRow_ < args_.numRows) {
      const int32_t row = nextRow_ + lane_;
      const bool several =
          row < args_.numRows && args_.numQueries(row) > 1 && args_.slots[row] >= 0;
      const unsigned lanes = __ballot_sync(kAllLanes, several);
      const int32_t place = count + __popc(lanes & ((1u << lane_) - 1));
      if (several && place < kWarpSize) rows_[place] = row;
      count += __popc(lanes);
      nextRow_ += kWarpSize;
    }
    __syncwarp();
    if (count > kWarpSize) {
      count = kWarpSize;
      nextRow_ = rows_[kWarpSize - 1] + 1;
    }
    rowsLeft_ = nextRow_ < args_.numRows ? rowsLeft_ - count : 0;
    const bool exists = lane_ < count;
    row_ = exists ? rows_[lane_] : 0;
    __syncwarp();
    numQueries_ = exists ? args_.numQueries(row_) * args_.group : 0;
    numComputed_ = exists ? args_.numComputedTokens[row_] : 0;
    numTiles_ = ceilDiv(numQueries_, Tiles::kQueries);
    units_ = sumOf(numTiles_) * args_.numKvHeads;
    const int32_t keys = numComputed_ + numQueries_ / args_.group;
    numKeyTiles_ = static_cast<int32_t>(
        __reduce_max_sync(kAllLanes, static_cast<unsigned>(ceilDiv(keys, Tiles::kKeys))));
  }

  const AttentionArgs& args_;
  int32_t* rows_;
  int lane_;
  int32_t rowsLeft_;
  int32_t nextRow_ = 0;
  int32_t before_ = 0;       // units of earlier rows
  int32_t units_ = 0;        // units of the 32 rows
  int32_t numKeyTiles_ = 0;  // of the longest of them
  // This lane's row.
  int32_t row_ = 0;
  int32_t numQueries_ = 0;  // tokens * group
  int32_t numComputed_ = 0;
  int32_t numTiles_ = 0;
};

#endif

}  // namespace uniproc::cuda::prefill
