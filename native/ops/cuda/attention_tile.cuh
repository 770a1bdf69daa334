// Attention of a few query rows over a few keys, by one warp on tensor cores: the inner step of
// both kernels. After Dao 2023 (FlashAttention-2): weights stay in registers, since mma's output
// layout for the scores equals the layout of the next product's left operand.
//
// mma.cuh has the layouts. Tiles in shared memory have rows of headDim + 8 elements: an odd number
// of 16-byte parts, so that the eight rows that ldmatrix reads at once lie in different banks.
#pragma once

#include <cstdint>
#include <limits>

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

// Starts an asynchronous copy of 16 bytes; a negative `index` writes zeros instead.
__device__ inline void copyAsync(uint32_t to, const void* from, int32_t index) {
  asm volatile(
      "{\n"
      ".reg .pred ignore;\n"
      "setp.lt.s32 ignore, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, ignore;\n"
      "}" ::"r"(to),
      "l"(from), "r"(index)
      : "memory");
}

// Closes a group of asynchronous copies.
__device__ inline void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kLeft of this thread's groups are in flight.
template <int kLeft>
__device__ inline void waitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
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

// 2^x; 0 for -infinity; error below 2 units in the last place.
__device__ inline float powerOf2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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
