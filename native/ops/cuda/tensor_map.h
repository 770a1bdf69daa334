// Tensor maps: descriptions of arrays in device memory for bulk tensor copies.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace uniproc::cuda {

// The map of keys or values [numBlocks, blockSize, numKvHeads, headDim] of a 2-byte type, whose
// boxes are `boxKeys` (a multiple of 8) adjacent keys of one head. Coordinates: 0, 0, 0, cache slot
// / 8, KV head. A box is written as [boxKeys / 8][headDim / 64] atoms of 8 rows of 64 elements with
// 128-byte swizzle (wgmma.cuh). headDim must be a multiple of 64. Throws Error DEVICE_FAILED if the
// driver rejects it.
CUtensorMap cacheMap(const void* base, bool isFloat16, int32_t numKvHeads, int32_t headDim,
                     int32_t boxKeys);

// The map of a weight [rows, cols] as panels [cols / P, rows, P], P being the elements of 128
// bytes, whose boxes are `boxPanels` panels of `boxRows` rows with 128-byte swizzle: 16 bytes c of
// row r of a panel are at position c ^ (r % 8). Coordinates: 0, row, panel. `elementBytes` 1 or 2;
// cols must be a multiple of P. Throws as cacheMap.
CUtensorMap weightMap(const void* base, int32_t elementBytes, int64_t rows, int64_t cols,
                      int32_t boxPanels, int32_t boxRows = 8);

// The map of a matrix [rows, cols] whose boxes are `boxRows` rows of `boxBytes`, 64 or 128, with a
// swizzle of as many bytes: 16 bytes c of row r are at position c ^ r of 128 bytes, at c ^ r / 2 of
// 64 (modulo 8 and 4). Coordinates: column, row. Beyond the matrix a box has zeros. `elementBytes`
// 1 or 2; a row's bytes must be a multiple of 16. Throws as cacheMap.
CUtensorMap matrixMap(const void* base, int32_t elementBytes, int64_t rows, int64_t cols,
                      int32_t boxRows, int32_t boxBytes);

}  // namespace uniproc::cuda
