// Dot products of rows, and weighted sums of rows: the two matrix products of layers and attention.
//
// V is a vector of V::kLanes floats that loads from each of the three types.
#pragma once

#include <algorithm>
#include <cstdint>

namespace uniproc::simd {

// sums [Rows, 4] = x[m] . w[n], each in one vector accumulator: lane l adds up the products at l,
// l + lanes, l + 2 lanes, ... in that order, then the lanes are added in a fixed tree. So a sum
// does not depend on the tile it is computed in.
template <class V, class T, int Rows>
inline void dotTile(const float* const* x, const T* const* w, int64_t k, float* sums) {
  V acc[Rows][4];
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) acc[m][n] = V::zero();
  }
  int64_t i = 0;
  for (; i + V::kLanes <= k; i += V::kLanes) {
    V b[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) b[n] = V::load(w[n] + i);
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      const V a = V::load(x[m] + i);
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) acc[m][n] = fma(a, b[n], acc[m][n]);
    }
  }
  if (i < k) {
    const int rest = static_cast<int>(k - i);
    V b[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) b[n] = V::loadPartial(w[n] + i, rest);
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      const V a = V::loadPartial(x[m] + i, rest);
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) acc[m][n] = fma(a, b[n], acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
    sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3], sums + m * 4);
  }
}

template <class V, class T, int Rows>
void dotRows(const float* x, int64_t xStride, const void* const* w, int64_t cols, int64_t k,
             float* out, int64_t outStride) {
  const float* xRows[Rows];
  for (int m = 0; m < Rows; ++m) xRows[m] = x + m * xStride;
  float sums[Rows * 4];
  int64_t n0 = 0;
  for (; n0 + 4 <= cols; n0 += 4) {
    const T* wRows[4];
    for (int n = 0; n < 4; ++n) wRows[n] = static_cast<const T*>(w[n0 + n]);
    dotTile<V, T, Rows>(xRows, wRows, k, sums);
    for (int m = 0; m < Rows; ++m) {
      for (int n = 0; n < 4; ++n) out[m * outStride + n0 + n] += sums[m * 4 + n];
    }
  }
  if (n0 < cols) {  // fewer than 4 are left: repeat the last to fill the tile
    const T* wRows[4];
    for (int n = 0; n < 4; ++n) wRows[n] = static_cast<const T*>(w[std::min(n0 + n, cols - 1)]);
    dotTile<V, T, Rows>(xRows, wRows, k, sums);
    for (int m = 0; m < Rows; ++m) {
      for (int64_t n = n0; n < cols; ++n) out[m * outStride + n] += sums[m * 4 + n - n0];
    }
  }
}

template <class V, class T>
void dot(const float* x, int64_t xStride, int64_t rows, const void* const* w, int64_t cols,
         int64_t k, float* out, int64_t outStride) {
  constexpr int kRows = V::kTileRows;
  for (; rows >= kRows; rows -= kRows) {
    dotRows<V, T, kRows>(x, xStride, w, cols, k, out, outStride);
    x += kRows * xStride;
    out += kRows * outStride;
  }
  if (rows == 1) dotRows<V, T, 1>(x, xStride, w, cols, k, out, outStride);
  if constexpr (kRows > 2) {
    if (rows == 2) dotRows<V, T, 2>(x, xStride, w, cols, k, out, outStride);
  }
  if constexpr (kRows > 3) {
    if (rows == 3) dotRows<V, T, 3>(x, xStride, w, cols, k, out, outStride);
  }
}

// out[q][d:] += p[q][j] * v[j][d:] for j in [begin, end), for `Vectors` vectors or, if Partial, for
// one vector of `lanes` lanes.
template <class V, class T, int Rows, int Vectors, bool Partial>
inline void weightedTile(const float* p, int64_t pStride, const void* const* v, int64_t begin,
                         int64_t end, int64_t d, int lanes, float* out, int64_t outStride) {
  V acc[Rows][Vectors];
#pragma GCC unroll 4
  for (int q = 0; q < Rows; ++q) {
#pragma GCC unroll 4
    for (int i = 0; i < Vectors; ++i) {
      const float* from = out + q * outStride + d + i * V::kLanes;
      acc[q][i] = Partial ? V::loadPartial(from, lanes) : V::load(from);
    }
  }
  for (int64_t j = begin; j < end; ++j) {
    const T* row = static_cast<const T*>(v[j]) + d;
    V b[Vectors];
#pragma GCC unroll 4
    for (int i = 0; i < Vectors; ++i) {
      b[i] = Partial ? V::loadPartial(row, lanes) : V::load(row + i * V::kLanes);
    }
#pragma GCC unroll 4
    for (int q = 0; q < Rows; ++q) {
      const V a = V::broadcast(p[q * pStride + j]);
#pragma GCC unroll 4
      for (int i = 0; i < Vectors; ++i) acc[q][i] = fma(a, b[i], acc[q][i]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Rows; ++q) {
#pragma GCC unroll 4
    for (int i = 0; i < Vectors; ++i) {
      float* to = out + q * outStride + d + i * V::kLanes;
      if constexpr (Partial) {
        acc[q][i].storePartial(to, lanes);
      } else {
        acc[q][i].store(to);
      }
    }
  }
}

template <class V, class T, int Rows>
void weightedRows(const float* p, int64_t pStride, const void* const* v, int64_t begin, int64_t end,
                  int64_t width, float* out, int64_t outStride) {
  int64_t d = 0;
  for (; d + 4 * V::kLanes <= width; d += 4 * V::kLanes) {
    weightedTile<V, T, Rows, 4, false>(p, pStride, v, begin, end, d, 0, out, outStride);
  }
  for (; d + 2 * V::kLanes <= width; d += 2 * V::kLanes) {
    weightedTile<V, T, Rows, 2, false>(p, pStride, v, begin, end, d, 0, out, outStride);
  }
  for (; d + V::kLanes <= width; d += V::kLanes) {
    weightedTile<V, T, Rows, 1, false>(p, pStride, v, begin, end, d, 0, out, outStride);
  }
  if (d < width) {
    const int lanes = static_cast<int>(width - d);
    weightedTile<V, T, Rows, 1, true>(p, pStride, v, begin, end, d, lanes, out, outStride);
  }
}

template <class V, class T>
void weightedSum(const float* p, int64_t pStride, int64_t rows, const void* const* v, int64_t begin,
                 int64_t end, int64_t width, float* out, int64_t outStride) {
  constexpr int kRows = V::kTileRows;
  for (; rows >= kRows; rows -= kRows) {
    weightedRows<V, T, kRows>(p, pStride, v, begin, end, width, out, outStride);
    p += kRows * pStride;
    out += kRows * outStride;
  }
  if (rows == 1) weightedRows<V, T, 1>(p, pStride, v, begin, end, width, out, outStride);
  if constexpr (kRows > 2) {
    if (rows == 2) weightedRows<V, T, 2>(p, pStride, v, begin, end, width, out, outStride);
  }
  if constexpr (kRows > 3) {
    if (rows == 3) weightedRows<V, T, 3>(p, pStride, v, begin, end, width, out, outStride);
  }
}

}  // namespace uniproc::simd
