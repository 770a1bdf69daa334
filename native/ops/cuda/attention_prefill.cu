// Prefill attention, for rows with several queries: causal, over the paged cache, bound by
// arithmetic.
//
// A block takes 128 query rows: adjacent tokens, each with all query heads that share one KV head,
// so that a tile of keys and values is read from the cache once for the whole group. It loops over
// tiles of keys and copies the next tile asynchronously while it computes on the current one (Dao
// 2023, FlashAttention-2).
#include <algorithm>

#include "ops/cuda/attention.cuh"
#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

// Larger heads leave shared memory for fewer queries and keys. From a cache in fp8 one tile is
// converted to T before it is computed on, while the next one is copied.
template <class T, class C, int kHeadDim>
struct Tiles {
  static constexpr int kMatrices = kHeadDim <= 128 ? 2 : 1;  // matrices of 16 query rows per warp
  static constexpr int32_t kQueries = kWarps * 16 * kMatrices;  // per block
  static constexpr int32_t kKeys = kHeadDim <= 128 ? 64 : 32;   // per tile
  static constexpr int32_t kKeysOfWarp = kKeys / kWarps;        // copied by each warp

  static constexpr uint32_t kRowBytes = kTileStride<kHeadDim> * sizeof(T);
  static constexpr uint32_t kQueryBytes = kQueries * kRowBytes;
  static constexpr uint32_t kKeyBytes = kKeys * kRowBytes;
  static constexpr uint32_t kStageBytes = 2 * kKeyBytes;  // keys, then values
  static constexpr uint32_t kFloat8KeyBytes = kFloat8Bytes<kHeadDim, kKeys>;
  static constexpr uint32_t kBytes =
      kQueryBytes + (kIsFloat8<C> ? kStageBytes + 2 * kFloat8KeyBytes : 2 * kStageBytes);
};

// Query i of a row of the batch is head kvHead * group + i % group of its token i / group.
//
// Grid: numKvHeads * (the largest number of query tiles for this many rows and tokens); blocks past
// the last tile return at once. A row's later tiles, which attend to more keys, come first, since
// blocks start in order. 128 threads; shared memory: 102 KiB for heads of 128. Computes 4 * headDim
// operations per query and attended key and is bound by mma.sync, which reaches two thirds of the
// tensor cores' rate on Hopper.
template <class T, class C, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2) prefillKernel(const AttentionArgs args) {
  using Tiles = Tiles<T, C, kHeadDim>;
  constexpr int kMatrices = Tiles::kMatrices;
  constexpr int32_t kKeys = Tiles::kKeys;
  extern __shared__ __align__(16) unsigned char shared[];
  waitForPrevious();

  const auto numQueriesOf = [&](int32_t row) {  // 0 for a row with one query
    const int32_t tokens = args.numQueries(row);
    return args.slots[row] >= 0 && tokens > 1 ? tokens * args.group : 0;
  };
  const auto unitsOf = [&](int32_t row) { return ceilDiv(numQueriesOf(row), Tiles::kQueries); };
  const RowUnits<kThreads, decltype(unitsOf)> units(args.numRows, unitsOf);
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t unit = units.total() - 1 - block / args.numKvHeads;
  if (unit < 0) return;
  const int32_t kvHead = block % args.numKvHeads;
  const auto [row, tileOfRow] = units.find(unit);

  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t firstToken = args.queryStarts[row];
  const int32_t firstQuery = tileOfRow * Tiles::kQueries;
  const int32_t numQueries = min(numQueriesOf(row) - firstQuery, Tiles::kQueries);  // in this tile
  const auto tokenOf = [&](int32_t query) { return (firstQuery + query) / args.group; };
  const auto headOf = [&](int32_t query) {
    return kvHead * args.group + (firstQuery + query) % args.group;
  };
  const auto positionOf = [&](int32_t query) {
    return args.numComputedTokens[row] + tokenOf(query);
  };

  const uint32_t queries = sharedAddress(shared);
  const T* qkv = static_cast<const T*>(args.qkv);
  copyQueries<kHeadDim, Tiles::kQueries, kThreads>(queries, numQueries, [&](int32_t query) {
    return qkv + (firstToken + tokenOf(query)) * args.qkvWidth +
           static_cast<int64_t>(headOf(query)) * kHeadDim;
  });

  // Keys [begin, end) are attended to by at least one of these queries, keys [beginOfLast,
  // endOfFirst) by all of them.
  const int32_t begin = args.firstKey(positionOf(0));
  const int32_t beginOfLast = args.firstKey(positionOf(numQueries - 1));
  const int32_t endOfFirst = positionOf(0) + 1;
  const int32_t end = positionOf(numQueries - 1) + 1;
  const int32_t firstTile = begin / kKeys;
  const int32_t lastTile = (end - 1) / kKeys;

  const int32_t* blocks = args.blocksOf(args.slots[row]);
  const auto cacheSlotOf = [&](int32_t tile) {  // cache slot of this lane's key
    const int32_t key = tile * kKeys + warp * Tiles::kKeysOfWarp + lane % Tiles::kKeysOfWarp;
    return key >= begin && key < end ? args.cacheSlot(blocks, key) : -1;
  };
  const uint32_t stages = queries + Tiles::kQueryBytes;
  // In fp8, this warp's keys and values.
  const uint32_t float8 =
      stages + Tiles::kStageBytes + static_cast<uint32_t>(warp * Tiles::kKeysOfWarp) * kHeadDim;
  const auto copy = [&](uint32_t stage, int32_t cacheSlot) {
    if constexpr (kIsFloat8<C>) {
      copyFloat8<kHeadDim, Tiles::kKeysOfWarp>(float8, float8 + Tiles::kFloat8KeyBytes, args,
                                               kvHead, cacheSlot);
    } else {
      const uint32_t to = stages + stage * Tiles::kStageBytes +
                          static_cast<uint32_t>(warp * Tiles::kKeysOfWarp) * Tiles::kRowBytes;
      copyKeysAndValues<T, kHeadDim, Tiles::kKeysOfWarp>(to, to + Tiles::kKeyBytes, args, kvHead,
                                                         cacheSlot);
    }
  };

  // This thread's query rows. Rows past the tile's end hold zeros, attend to the same keys as its
  // last row, and are not stored.
  const int32_t firstOfWarp = warp * 16 * kMatrices;
  const auto queryOf = [&](int i, int h) { return firstOfWarp + i * 16 + lane / 4 + h * 8; };

  QueryRows<T, kHeadDim, kMatrices> rows;
  copy(0, cacheSlotOf(firstTile));
  commitCopies();
  int32_t nextCacheSlot = cacheSlotOf(firstTile + 1);
  uint32_t stage = 1;
  for (int32_t tile = firstTile; tile <= lastTile; ++tile) {
    stage ^= 1;
    waitForCopies<0>();
    __syncthreads();  // this tile is loaded, and all threads are done with the previous one
    if constexpr (kIsFloat8<C>) {
      stage = 0;
      const uint32_t to =
          stages + static_cast<uint32_t>(warp * Tiles::kKeysOfWarp) * Tiles::kRowBytes;
      convertFloat8<T, kHeadDim, Tiles::kKeysOfWarp>(float8, to);
      convertFloat8<T, kHeadDim, Tiles::kKeysOfWarp>(float8 + Tiles::kFloat8KeyBytes,
                                                     to + Tiles::kKeyBytes);
      __syncthreads();
    }
    if (tile < lastTile) copy(stage ^ 1, nextCacheSlot);
    commitCopies();
    nextCacheSlot = cacheSlotOf(tile + 2);
    if (firstOfWarp >= numQueries) continue;

    const uint32_t keys = stages + stage * Tiles::kStageBytes;
    float scores[kMatrices][kKeys / 8][4];
    rows.template computeScores<kKeys>(
        scores,
        queries + static_cast<uint32_t>(firstOfWarp) * Tiles::kRowBytes + matrixOffset<kHeadDim>(),
        keys + keysOffset<kHeadDim>());
    rows.template capScores<kKeys>(scores, args);
    if (tile * kKeys < beginOfLast || (tile + 1) * kKeys > endOfFirst) {
#pragma unroll
      for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int32_t position = positionOf(min(queryOf(i, h), numQueries - 1));
          const int32_t firstColumn = tile * kKeys + lane % 4 * 2;
          // Visible keys, relative to this thread's first column of the tile.
          const int32_t first = args.firstKey(position) - firstColumn;
          const int32_t last = position - firstColumn;
#pragma unroll
          for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const bool visible = n * 8 + c >= first && n * 8 + c <= last;
              scores[i][n][2 * h + c] = visible ? scores[i][n][2 * h + c] : kMasked;
            }
          }
        }
      }
    }
    rows.template scoresToWeights<kKeys>(scores, args.scale);
    rows.template addValues<kKeys>(scores, keys + Tiles::kKeyBytes + matrixOffset<kHeadDim>());
  }

  rows.finishSums();
  T* out = static_cast<T*>(args.out);
#pragma unroll
  for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t query = queryOf(i, h);
      if (query >= numQueries) continue;
      const int64_t token = firstToken + tokenOf(query);
      T* to = out + (token * args.numHeads + headOf(query)) * kHeadDim + lane % 4 * 2;
      const float sink = args.template sinkWeight<T>(headOf(query), rows.maximum[i][h]);
      const float factor = args.template sumFactor<C>(rows.sum[i][h] + sink);
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        const float pair[2] = {rows.out[i][n][2 * h] * factor, rows.out[i][n][2 * h + 1] * factor};
        storeNarrowed<2>(to + n * 8, pair);
      }
    }
  }
}

}  // namespace

size_t attentionPrefillSharedBytes(DType type, int32_t headDim) {
  size_t bytes = 0;
  withTensorCores(type, headDim,
                  [&]<class T, int kHeadDim>() { bytes = Tiles<T, T, kHeadDim>::kBytes; });
  return bytes;
}

void attentionPrefill(const AttentionArgs& args, DType type, bool isFloat8, const Batch& batch,
                      cudaStream_t stream) {
  const int32_t numRows = batch.numRows - batch.numDecodeRows;
  const int32_t numTokens = batch.numTokens - batch.numDecodeRows;
  withTensorCores(type, args.headDim, [&]<class T, int kHeadDim>() {
    withCacheOf<T>(isFloat8, [&]<class C>() {
      using Tiles = Tiles<T, C, kHeadDim>;
      static_assert(Tiles::kBytes <= cuda::Tiles<T, T, kHeadDim>::kBytes);
      // Upper bound: each row may have one partial tile, and no row has more tiles than the
      // longest.
      const int32_t most =
          std::min(numTokens * args.group / Tiles::kQueries + numRows,
                   numRows * ceilDiv(batch.maxQueryLen * args.group, Tiles::kQueries));
      const auto kernel = prefillKernel<T, C, kHeadDim>;
      check(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tiles::kBytes),
          "cudaFuncSetAttribute of attentionPrefill");
      launch(kernel, static_cast<unsigned>(most * args.numKvHeads), kThreads, Tiles::kBytes, stream,
             args);
      check(cudaGetLastError(), "attentionPrefill");
    });
  });
}

}  // namespace uniproc::cuda
