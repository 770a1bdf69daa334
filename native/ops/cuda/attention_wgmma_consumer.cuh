// The warpgroups that compute in prefill attention with wgmma.
#pragma once

#include <cstdint>

#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/attention_wgmma.cuh"
#include "ops/cuda/attention_wgmma_producers.cuh"

namespace uniproc::cuda::prefill {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A warpgroup's 64 query rows. This thread holds rows lane / 4 + 8 h of its warp's 16, at columns
// 8 n + lane % 4 * 2 and the next one: element 4 n + 2 h + c of a matrix.
template <class Tiles>
class Consumer {
  using T = typename Tiles::Element;
  static constexpr int kHeadDim = Tiles::kHeadDim;
  static constexpr int32_t kKeys = Tiles::kKeys;
  static constexpr int kColumns = kKeys / 8;
  static_assert(kKeys == kWarpgroupSize, "clearValues: one key per thread");

 public:
  __device__ __forceinline__ Consumer(const AttentionArgs& args, Shared<Tiles>& shared,
                                      uint32_t tiles)
      : args_(args),
        shared_(shared),
        tiles_(tiles),
        group_(static_cast<int>(threadIdx.x) / kWarpgroupSize - 1),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize) {}

  // Named barriers: 1 .. kConsumers pass the turn, 8 + group synchronizes a warpgroup.
  __device__ __forceinline__ void run() {
    if (group_ == Tiles::kConsumers - 1) passTurn();
    Stage<Tiles::kQueryStages> stage;
    forEachUnit(shared_, [&](const Unit& unit) {
      waitForPhase(shared_.queriesFull[stage.index], stage.parity);
      attend(unit, stage.index);
      store(unit);
      stage.advance();
    });
    if (group_ == 0) takeTurn();  // the last warpgroup's last pass
  }

 private:
  __device__ __forceinline__ void release(uint64_t& barrier) const {
    if (lane_ == 0) arrive(barrier);
  }

  // The warpgroups start their products in turns, so that one computes weights while another's
  // products run.
  __device__ __forceinline__ void takeTurn() const {
    if constexpr (Tiles::kConsumers > 1) syncNamed(1 + group_, 2 * kWarpgroupSize);
  }
  __device__ __forceinline__ void passTurn() const {
    if constexpr (Tiles::kConsumers > 1) {
      arriveNamed(1 + (group_ + 1) % Tiles::kConsumers, 2 * kWarpgroupSize);
    }
  }

  // Index of this thread's row h among the unit's queries.
  __device__ __forceinline__ int32_t queryOf(int h) const {
    const auto warp = static_cast<int32_t>(threadIdx.x) / kWarpSize - 4;
    return warp * 16 + lane_ / 4 + 8 * h;
  }

  // From the unit's last tile of keys to its first.
  __device__ __forceinline__ void attend(const Unit& unit, uint32_t queryStage) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out_[i] = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Rows past the unit's end hold zeros, attend as its last row, and are not stored.
      const int32_t query = unit.firstQuery + min(queryOf(h), unit.numQueries - 1);
      position_[h] = unit.numComputed + query / args_.group;
      maximum_[h] = kMasked;
      sum_[h] = 0.0f;
    }
    if constexpr (Tiles::kQueriesInRegisters) {
      loadQueries(queryStage);
      __syncwarp();
      release(shared_.queriesEmpty[queryStage]);
    }
    const uint64_t queries = operandDescriptor(
        Tiles::queries(tiles_, queryStage) + static_cast<uint32_t>(group_) * 64 * 128,
        Tiles::kAtomBytes, 0);

    waitForPhase(shared_.keysFull[stage_.index], stage_.parity);
    takeTurn();
    startScores(queries, stage_.index);
    commitProducts();
    passTurn();
    waitForProducts<0>();
    keepRegisters(scores_);
    release(shared_.keysEmpty[stage_.index]);
    if (!Tiles::kQueriesInRegisters && unit.firstTile == unit.lastTile) {
      release(shared_.queriesEmpty[queryStage]);
    }
    mask(unit.lastTile);
    float factor[2];
    scoresToWeights(factor);
    packWeights();
    clearValues(unit, unit.lastTile);

    const int32_t firstTile = unit.firstTile;
    const int32_t wholeBegin = ceilDiv(unit.beginOfLast, kKeys);
    const int32_t wholeEnd = unit.endOfFirst / kKeys;
    for (int32_t tile = unit.lastTile - 1; tile >= firstTile; --tile) {
      if (tile >= wholeBegin && tile < wholeEnd) {
        step<false>(unit, tile, firstTile, queries, queryStage);
      } else {
        step<true>(unit, tile, firstTile, queries, queryStage);
      }
    }

    waitForPhase(shared_.valuesFull[stage_.index], stage_.parity);
    takeTurn();
    startOut();
    commitProducts();
    passTurn();
    waitForProducts<0>();
    keepRegisters(out_);
    keepRegisters(weights_);
    release(shared_.valuesEmpty[stage_.index]);
    stage_.advance();
  }

  // The scores of `tile`, while the weights of the tile after it multiply its values.
  template <bool kMask>
  __device__ __forceinline__ void step(const Unit& unit, int32_t tile, int32_t firstTile,
                                       uint64_t queries, uint32_t queryStage) {
    Stage<Tiles::kStages> next = stage_;
    next.advance();
    waitForPhase(shared_.keysFull[next.index], next.parity);
    takeTurn();
    startScores(queries, next.index);
    commitProducts();
    waitForPhase(shared_.valuesFull[stage_.index], stage_.parity);
    startOut();
    commitProducts();
    passTurn();
    waitForProducts<1>();
    keepRegisters(scores_);
    release(shared_.keysEmpty[next.index]);
    if (!Tiles::kQueriesInRegisters && tile == firstTile) release(shared_.queriesEmpty[queryStage]);
    if constexpr (kMask) mask(tile);
    float factor[2];
    scoresToWeights(factor);
    waitForProducts<0>();
    keepRegisters(out_);
    keepRegisters(weights_);
    release(shared_.valuesEmpty[stage_.index]);
    stage_.advance();
    packWeights();
    rescale(factor);
    if constexpr (kMask) clearValues(unit, tile);
  }

  // scores = queries keys^T.
  __device__ __forceinline__ void startScores(uint64_t queries, uint32_t stage) {
    const uint64_t keys = operandDescriptor(Tiles::keys(tiles_, stage), Tiles::kGroupBytes, 0);
    fenceProducts();
#pragma unroll
    for (uint32_t k = 0; k < kHeadDim / 16; ++k) {
      const uint32_t inAtom = k % 4 * 32;
      const uint64_t keysOfStep = keys + ((k / 4 * Tiles::kAtomBytes + inAtom) >> 4);
      if constexpr (Tiles::kQueriesInRegisters) {
        multiplyRows<T>(scores_, queryParts_ + 4 * k, keysOfStep, k != 0);
      } else {
        multiplyRows<T>(scores_, queries + ((k / 4 * Tiles::kQueryHalfBytes + inAtom) >> 4),
                        keysOfStep, k != 0);
      }
    }
  }

  // Loads this warp's queries into the registers of a left operand.
  __device__ __forceinline__ void loadQueries(uint32_t stage) {
    const uint32_t row = threadIdx.x / kWarpSize * 16 - kWarpgroupSize / 2 + lane_ % 16;
    const uint32_t from = Tiles::queries(tiles_, stage) + row * 128;
#pragma unroll
    for (uint32_t k = 0; k < kHeadDim / 16; ++k) {
      const uint32_t part = k % 4 * 2 + static_cast<uint32_t>(lane_) / 16;
      uint32_t parts[4];
      loadMatrices(parts, from + k / 4 * Tiles::kQueryHalfBytes + (part ^ (row % 8)) * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) queryParts_[4 * k + i] = parts[i];
    }
  }

  // out += weights values.
  __device__ __forceinline__ void startOut() {
    const uint64_t values = operandDescriptor(Tiles::values(tiles_, stage_.index),
                                              Tiles::kGroupBytes, Tiles::kAtomBytes);
    fenceProducts();
#pragma unroll
    for (uint32_t k = 0; k < kKeys / 16; ++k) {
      multiplyColumns<T>(out_, weights_ + 4 * k, values + ((k * 2 * Tiles::kGroupBytes) >> 4));
    }
  }

  // Masks keys after a query's position or before its window.
  __device__ __forceinline__ void mask(int32_t tile) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t firstColumn = tile * kKeys + lane_ % 4 * 2;
      const int32_t first = args_.firstKey(position_[h]) - firstColumn;
      const int32_t last = position_[h] - firstColumn;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const bool visible = n * 8 + c >= first && n * 8 + c <= last;
          scores_[4 * n + 2 * h + c] = visible ? scores_[4 * n + 2 * h + c] : kMasked;
        }
      }
    }
  }

  // Turns scores into weights 2^((score - maximum) scale). Sums of earlier keys must be multiplied
  // by `factor`. A row without keys so far keeps sums of zero.
  __device__ __forceinline__ void scoresToWeights(float (&factor)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float best = maximum_[h];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        best = fmaxf(best, fmaxf(scores_[4 * n + 2 * h], scores_[4 * n + 2 * h + 1]));
      }
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
      // Rounded products, so that the factor is exactly 1 while the maximum stays.
      const float base = best == kMasked ? 0.0f : __fmul_rn(best, args_.scale);
      factor[h] = powerOf2(__fsub_rn(__fmul_rn(maximum_[h], args_.scale), base));
      maximum_[h] = best;
      float sums[2] = {0.0f, 0.0f};
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores_[4 * n + 2 * h + c];
          score = powerOf2(fmaf(score, args_.scale, -base));
          sums[c] += score;
        }
      }
      sum_[h] = __fmaf_rn(sum_[h], factor[h], __fadd_rn(sums[0], sums[1]));
    }
  }

  // Multiplies the sums of earlier keys; most tiles raise no maximum.
  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
    if (!__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out_[i] *= factor[i / 2 % 2];
  }

  // Rounds the weights to T, as the left operand of the product with the values.
  __device__ __forceinline__ void packWeights() {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      weights_[i] = pack<T>(scores_[2 * i], scores_[2 * i + 1]);
    }
  }

  // Clears values of keys that no query of the unit may attend to: their weights are 0, but the
  // cache may hold infinities or NaN there.
  __device__ __forceinline__ void clearValues(const Unit& unit, int32_t tile) {
    if (tile * kKeys >= unit.begin && (tile + 1) * kKeys <= unit.endOfRow) return;
    waitForPhase(shared_.valuesFull[stage_.index], stage_.parity);
    const auto row = static_cast<int32_t>(threadIdx.x) % kWarpgroupSize;
    const int32_t key = tile * kKeys + row;
    if (key < unit.begin || key >= unit.endOfRow) {
      const uint32_t to = Tiles::values(tiles_, stage_.index) +
                          static_cast<uint32_t>(row) / 8 * Tiles::kGroupBytes +
                          static_cast<uint32_t>(row) % 8 * 128;
#pragma unroll
      for (uint32_t i = 0; i < kHeadDim / 8; ++i) {
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(
                         to + i / 8 * Tiles::kAtomBytes + i % 8 * 16),
                     "r"(0)
                     : "memory");
      }
      fenceSharedWrites();
    }
    syncNamed(8 + group_, kWarpgroupSize);
  }

  // Stores out / sum. Lanes 4 i .. 4 i + 3 hold 4 times 2 columns of 4 blocks of 8; they exchange
  // them so that each stores 8 adjacent columns.
  __device__ __forceinline__ void store(const Unit& unit) const {
    T* out = static_cast<T*>(args_.out);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t query = queryOf(h);
      const int32_t queryOfRow = unit.firstQuery + query;
      const int64_t token = unit.firstToken + queryOfRow / args_.group;
      const int32_t head = unit.kvHead * args_.group + queryOfRow % args_.group;
      T* to = out + (token * args_.numHeads + head) * kHeadDim + lane_ % 4 * 8;
      const float sink =
          query < unit.numQueries ? args_.template sinkWeight<T>(head, maximum_[h]) : 0.0f;
      const float factor = 1.0f / (warpSum<4>(sum_[h]) + sink);
#pragma unroll
      for (int n = 0; n < kHeadDim / 32; ++n) {
        uint32_t parts[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = 4 * (4 * n + i) + 2 * h;
          parts[i] = pack<T>(out_[at] * factor, out_[at + 1] * factor);
        }
        transpose(parts);
        if (query < unit.numQueries) {
          *reinterpret_cast<uint4*>(to + n * 32) = {parts[0], parts[1], parts[2], parts[3]};
        }
      }
    }
  }

  // Part i of lane j of four becomes part j of lane i.
  __device__ __forceinline__ void transpose(uint32_t (&parts)[4]) const {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      const bool upper = (lane_ & bit) != 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & bit) != 0) continue;
        const uint32_t other = __shfl_xor_sync(kAllLanes, upper ? parts[i] : parts[i | bit], bit);
        parts[i] = upper ? other : parts[i];
        parts[i | bit] = upper ? parts[i | bit] : other;
      }
    }
  }

  const AttentionArgs& args_;
  Shared<Tiles>& shared_;
  uint32_t tiles_;  // shared address
  int group_;
  int lane_;
  Stage<Tiles::kStages> stage_;  // of the next values
  uint32_t queryParts_[Tiles::kQueriesInRegisters ? kHeadDim / 4 : 1];
  float out_[kHeadDim / 2];
  float scores_[kKeys / 2];      // of a tile of keys; then their weights
  uint32_t weights_[kKeys / 4];  // of the tile before, rounded
  float maximum_[2];             // of the scores so far
  float sum_[2];                 // of the weights in this thread's columns
  int32_t position_[2];
};

#endif

}  // namespace uniproc::cuda::prefill
