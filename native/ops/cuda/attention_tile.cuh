// Attention of a few query rows over a few keys, by one warp on tensor cores: the inner step of
// both kernels. After Dao 2023 (FlashAttention-2): weights stay in registers, since mma's output
// layout for the scores equals the layout of the next product's left operand.
//
// mma.cuh has the layouts. Tiles in shared memory have rows of headDim + 8 elements: an odd number
// of 16-byte parts, so that the eight rows that ldmatrix reads at once lie in different banks.
#pragma once

#include <cstdint>
#include <limits>

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/attention.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/mma.cuh"

namespace uniproc::cuda {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

template <int kHeadDim>
constexpr uint32_t kTileStride = kHeadDim + 8;  // elements

// Copies ---------------------------------------------------------------------------------------

__device__ inline uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A warp starts to copy kRows keys and values of head kvHead. Lane i (modulo kRows) passes the
// cache slot of row i, or -1 for a row of zeros.
template <class T, int kHeadDim, int kRows>
__device__ inline void copyKeysAndValues(uint32_t keysTo, uint32_t valuesTo,
                                         const AttentionArgs& args, int32_t kvHead,
                                         int32_t cacheSlot) {
  constexpr uint32_t kParts = kHeadDim / 8;  // 16-byte parts per row
  static_assert(kRows * kParts % kWarpSize == 0);
  const uint32_t lane = threadIdx.x % kWarpSize;
  const uint32_t stride = static_cast<uint32_t>(args.numKvHeads) * kHeadDim * sizeof(T);
  const char* keys = static_cast<const char*>(args.keys) + kvHead * kHeadDim * sizeof(T);
  const char* values = static_cast<const char*>(args.values) + kvHead * kHeadDim * sizeof(T);
  constexpr uint32_t kSteps = kRows * kParts / kWarpSize;
  const auto rowOf = [lane](uint32_t i) { return (i * kWarpSize + lane) / kParts; };
  int32_t from[kSteps];  // all shuffles before the copies, which keep their order
#pragma unroll
  for (uint32_t i = 0; i < kSteps; ++i) {
    from[i] = __shfl_sync(kAllLanes, cacheSlot, static_cast<int>(rowOf(i)));
  }
#pragma unroll
  for (uint32_t i = 0; i < kSteps; ++i) {
    // Constant for the usual sizes, where a lane always copies the same part of a row.
    const uint32_t part = kWarpSize % kParts == 0 ? lane % kParts : (i * kWarpSize + lane) % kParts;
    const uint64_t offset = static_cast<uint64_t>(static_cast<uint32_t>(max(from[i], 0))) * stride;
    const uint32_t to =
        rowOf(i) * kTileStride<kHeadDim> * static_cast<uint32_t>(sizeof(T)) + part * 16;
    copyAsync(keysTo + to, keys + part * 16 + offset, from[i]);
    copyAsync(valuesTo + to, values + part * 16 + offset, from[i]);
  }
}

// Two adjacent elements of a row, the first in the lower half.
template <class T>
__device__ inline uint32_t pack(float first, float second) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
}

// Bytes of kRows keys, or values, of a cache in fp8 on their way to a tile.
template <int kHeadDim, int kRows>
constexpr uint32_t kFloat8Bytes = kRows * kHeadDim;

// As copyKeysAndValues, from a cache in fp8; its elements stay in fp8, in rows of kHeadDim bytes.
template <int kHeadDim, int kRows>
__device__ inline void copyFloat8(uint32_t keysTo, uint32_t valuesTo, const AttentionArgs& args,
                                  int32_t kvHead, int32_t cacheSlot) {
  constexpr uint32_t kParts = kHeadDim / 16;  // 16-byte parts per row
  const uint32_t lane = threadIdx.x % kWarpSize;
  const uint32_t stride = static_cast<uint32_t>(args.numKvHeads) * kHeadDim;
  const char* keys = static_cast<const char*>(args.keys) + kvHead * kHeadDim;
  const char* values = static_cast<const char*>(args.values) + kvHead * kHeadDim;
#pragma unroll
  for (uint32_t first = 0; first < kRows * kParts; first += kWarpSize) {
    const uint32_t index = first + lane;
    const uint32_t row = index / kParts;
    const int32_t from = __shfl_sync(kAllLanes, cacheSlot, static_cast<int>(row % kWarpSize));
    if (index >= kRows * kParts) continue;
    const uint64_t offset =
        static_cast<uint64_t>(static_cast<uint32_t>(max(from, 0))) * stride + index % kParts * 16;
    copyAsync(keysTo + index * 16, keys + offset, from);
    copyAsync(valuesTo + index * 16, values + offset, from);
  }
}

// Two elements in fp8, in the lower half of `two`, as T; NaN stays NaN.
template <class T>
__device__ inline uint32_t widenFloat8(uint32_t two) {
  uint32_t pair;  // of half
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(static_cast<uint16_t>(two)));
#else
  // Exponent and mantissa move into half's fields. The difference of the exponents' biases, also
  // right for subnormal numbers, is a product with 2^8.
  const uint32_t spread = __byte_perm(two, 0, 0x1404);
  const uint32_t fields = spread >> 1 & 0x3f803f80u;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(fields), "r"(0x5c005c00u));
  const uint32_t nan = __vcmpeq2(fields, 0x3f803f80u);
  pair |= (spread & 0x80008000u) | (nan & 0x7fff7fffu);
#endif
  if constexpr (std::is_same_v<T, __half>) return pair;
  __half2 halves;
  std::memcpy(static_cast<void*>(&halves), &pair, sizeof pair);
  const float2 numbers = __half22float2(halves);
  return pack<T>(numbers.x, numbers.y);  // exact
}

// A warp converts kRows rows that copyFloat8 brought to `from`, into a tile of T at `to`.
template <class T, int kHeadDim, int kRows>
__device__ inline void convertFloat8(uint32_t from, uint32_t to) {
  constexpr uint32_t kParts = kHeadDim / 16;
  const uint32_t lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (uint32_t first = 0; first < kRows * kParts; first += kWarpSize) {
    const uint32_t index = first + lane;
    if (index >= kRows * kParts) continue;
    uint32_t words[4];
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from + index * 16)
                 : "memory");
    const uint32_t at = to + (index / kParts * kTileStride<kHeadDim> + index % kParts * 16) * 2;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t* two = words + 2 * half;
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at + half * 16),
                   "r"(widenFloat8<T>(two[0])), "r"(widenFloat8<T>(two[0] >> 16)),
                   "r"(widenFloat8<T>(two[1])), "r"(widenFloat8<T>(two[1] >> 16))
                   : "memory");
    }
  }
}

// A block starts to copy kRows query rows, of which the first numRows exist; the others become
// zero. `sourceOf(i)` returns the address of row i.
template <int kHeadDim, int kRows, int kThreads, class SourceOf>
__device__ inline void copyQueries(uint32_t to, int32_t numRows, SourceOf sourceOf) {
  constexpr uint32_t kParts = kHeadDim / 8;  // 16-byte parts per row
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < kRows * kParts; i += kThreads) {
    const uint32_t row = i / kParts;
    const uint32_t column = i % kParts * 8;
    const bool exists = static_cast<int32_t>(row) < numRows;
    copyAsync(to + (row * kTileStride<kHeadDim> + column) * 2,
              sourceOf(exists ? static_cast<int32_t>(row) : 0) + column, exists ? 0 : -1);
  }
}

// Matrices -------------------------------------------------------------------------------------

// Loads four 8x8 matrices; lanes 8 m .. 8 m + 7 pass the row addresses of matrix m.
__device__ inline void loadMatrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

__device__ inline void loadMatricesTransposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// Byte offset that this lane passes to ldmatrix within a tile. matrixOffset: for a 16x16 matrix, as
// stored (queries) or transposed (values). keysOffset: for 16 keys, the columns of B.
template <int kHeadDim>
__device__ inline uint32_t matrixOffset() {
  const uint32_t lane = threadIdx.x % kWarpSize;
  return (lane % 16 * kTileStride<kHeadDim> + lane / 16 * 8) * 2;
}
template <int kHeadDim>
__device__ inline uint32_t keysOffset() {
  const uint32_t lane = threadIdx.x % kWarpSize;
  return ((lane / 16 * 8 + lane % 8) * kTileStride<kHeadDim> + lane / 8 % 2 * 8) * 2;
}

// Attention ------------------------------------------------------------------------------------

// State of a warp's 16 kMatrices query rows while it loops over the keys. This thread holds rows 16
// i + lane / 4 + 8 h, at columns 8 n + lane % 4 * 2 and the next one.
template <class T, int kHeadDim, int kMatrices>
struct QueryRows {
  float out[kMatrices][kHeadDim / 8][4];  // weighted sums of values, [i][n][2 h + column]
  float maximum[kMatrices][2];            // of the scores so far
  float sum[kMatrices][2];                // of the weights in this thread's columns

  __device__ QueryRows() {
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out[i][n][c] = 0.0f;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        maximum[i][h] = kMasked;
        sum[i][h] = 0.0f;
      }
    }
  }

  // scores = queries keys^T. `queries`: shared address of the tile [16 kMatrices, headDim] plus
  // matrixOffset(). `keys`: shared address of the tile [kKeys, headDim] plus keysOffset().
  template <int kKeys>
  __device__ static void computeScores(float (&scores)[kMatrices][kKeys / 8][4], uint32_t queries,
                                       uint32_t keys) {
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[i][n][c] = 0.0f;
      }
    }
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      uint32_t a[kMatrices][4];
#pragma unroll
      for (int i = 0; i < kMatrices; ++i) {
        loadMatrices(a[i], queries + (i * 16 * kTileStride<kHeadDim> + k * 16) * 2);
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        loadMatrices(b, keys + (n * 16 * kTileStride<kHeadDim> + k * 16) * 2);
#pragma unroll
        for (int i = 0; i < kMatrices; ++i) {
          multiplyAdd<T>(scores[i][2 * n], a[i], b[0], b[1]);
          multiplyAdd<T>(scores[i][2 * n + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // With a softcap, turns products of queries and keys into AttentionArgs::capped.
  template <int kKeys>
  __device__ static void capScores(float (&scores)[kMatrices][kKeys / 8][4],
                                   const AttentionArgs& args) {
    if (args.capFactor == 0.0f) return;
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[i][n][c] = args.capped(scores[i][n][c]);
      }
    }
  }

  // Turns scores into weights 2^((score - maximum) scale) and rescales earlier sums to the new
  // maximum. A row without keys so far keeps sums of zero.
  template <int kKeys>
  __device__ void scoresToWeights(float (&scores)[kMatrices][kKeys / 8][4], float scale) {
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float best = maximum[i][h];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          best = fmaxf(best, fmaxf(scores[i][n][2 * h], scores[i][n][2 * h + 1]));
        }
        best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
        const float base = best == kMasked ? 0.0f : best * scale;
        const float factor = powerOf2(maximum[i][h] * scale - base);
        maximum[i][h] = best;
        sum[i][h] *= factor;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          out[i][n][2 * h] *= factor;
          out[i][n][2 * h + 1] *= factor;
        }
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int c = 2 * h; c < 2 * h + 2; ++c) {
            scores[i][n][c] = powerOf2(fmaf(scores[i][n][c], scale, -base));
            sum[i][h] += scores[i][n][c];
          }
        }
      }
    }
  }

  // out += weights values. `values`: shared address of the tile [kKeys, headDim] plus
  // matrixOffset().
  template <int kKeys>
  __device__ void addValues(const float (&weights)[kMatrices][kKeys / 8][4], uint32_t values) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t a[kMatrices][4];
#pragma unroll
      for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float (&pairs)[4] = weights[i][2 * k + part / 2];
          a[i][part] = pack<T>(pairs[part % 2 * 2], pairs[part % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        uint32_t b[4];
        loadMatricesTransposed(b, values + (k * 16 * kTileStride<kHeadDim> + n * 16) * 2);
#pragma unroll
        for (int i = 0; i < kMatrices; ++i) {
          multiplyAdd<T>(out[i][2 * n], a[i], b[0], b[1]);
          multiplyAdd<T>(out[i][2 * n + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  // Adds the sums of the four threads that share a row; call once, at the end.
  __device__ void finishSums() {
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) sum[i][h] = warpSum<4>(sum[i][h]);
    }
  }
};

}  // namespace uniproc::cuda
