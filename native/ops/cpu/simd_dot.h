// Dot products of rows, and weighted sums of rows: the two matrix products of layers and attention.
//
// V is a vector of V::kLanes elements that loads from the types of both operands; fma adds products
// to a V::Sum, a vector of floats.
#pragma once

#include <algorithm>
#include <cstdint>

namespace uniproc::simd {
// Each source its own, for its instructions.
namespace {

// A dot product of rows adds in one vector accumulator: lane l adds up the products at l, l +
// lanes, l + 2 lanes, ... in that order, then the lanes are added in a fixed tree. So a sum does
// not depend on the tile it is computed in.

// sums [Rows, 4] = the lane sums of each accumulator.
template <class Sum, int Rows>
inline void sumTile(const Sum (&acc)[Rows][4], float* sums) {
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
    sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3], sums + m * 4);
  }
}

// sums [Rows, 4] = x[m] . w[n]. Prefetches next[a][:k] for a < Ahead.
template <class V, class X, class T, int Rows, int Ahead>
inline void dotTile(const X* const* x, const T* const* w, int64_t k, const T* const* next,
                    float* sums) {
  typename V::Sum acc[Rows][4];
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) acc[m][n] = V::Sum::zero();
  }
  int64_t i = 0;
  for (; i + V::kLanes <= k; i += V::kLanes) {
#pragma GCC unroll 4
    for (int a = 0; a < Ahead; ++a) __builtin_prefetch(next[a] + i);
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
  sumTile(acc, sums);
}

// `turn` counts the tiles of rows; each prefetches other rows of each four in `next`.
template <class V, class X, class T, int Rows, int Ahead>
void dotRows(const X* x, int64_t xStride, const void* const* w, int64_t cols, int64_t k,
             const void* const* next, int64_t turn, float* out, int64_t outStride) {
  const X* xRows[Rows];
  for (int m = 0; m < Rows; ++m) xRows[m] = x + m * xStride;
  for (int64_t n0 = 0; n0 < cols; n0 += 4) {
    const int64_t last = std::min<int64_t>(3, cols - 1 - n0);
    const T* wRows[4];
    // Where fewer than 4 are left, the last is repeated to fill the tile.
    for (int64_t n = 0; n < 4; ++n) wRows[n] = static_cast<const T*>(w[n0 + std::min(n, last)]);
    const T* nextRows[Ahead > 0 ? Ahead : 1];
    for (int64_t a = 0; a < Ahead; ++a) {
      nextRows[a] = static_cast<const T*>(next[n0 + std::min((turn * Ahead + a) % 4, last)]);
    }
    float sums[Rows * 4];
    dotTile<V, X, T, Rows, Ahead>(xRows, wRows, k, nextRows, sums);
    float* to = out + n0;
    for (int m = 0; m < Rows; ++m, to += outStride) {
      if (last == 3) {
        for (int n = 0; n < 4; ++n) to[n] += sums[m * 4 + n];
      } else {
        for (int64_t n = 0; n <= last; ++n) to[n] += sums[m * 4 + n];
      }
    }
  }
}

template <class V, class X, class T, int Ahead>
void dotAhead(const X* x, int64_t xStride, int64_t rows, const void* const* w, int64_t cols,
              int64_t k, const void* const* next, float* out, int64_t outStride) {
  constexpr int kRows = V::kTileRows;
  int64_t turn = 0;
  for (; rows >= kRows; rows -= kRows, ++turn) {
    // The rows of out are often a power of two apart, so that the caches do not keep them.
    for (int64_t m = kRows; m < std::min<int64_t>(rows, 2 * kRows); ++m) {
      __builtin_prefetch(out + m * outStride, 1);
    }
    dotRows<V, X, T, kRows, Ahead>(x, xStride, w, cols, k, next, turn, out, outStride);
    x += kRows * xStride;
    out += kRows * outStride;
  }
  if (rows == 1) dotRows<V, X, T, 1, Ahead>(x, xStride, w, cols, k, next, turn, out, outStride);
  if constexpr (kRows > 2) {
    if (rows == 2) dotRows<V, X, T, 2, Ahead>(x, xStride, w, cols, k, next, turn, out, outStride);
  }
  if constexpr (kRows > 3) {
    if (rows == 3) dotRows<V, X, T, 3, Ahead>(x, xStride, w, cols, k, next, turn, out, outStride);
  }
}

// The fewer tiles of rows, the more each prefetches, so that together they prefetch all of `next`.
template <class V, class X, class T>
void dot(const X* x, int64_t xStride, int64_t rows, const void* const* w, int64_t cols, int64_t k,
         const void* const* next, float* out, int64_t outStride) {
  if (rows <= V::kTileRows) {
    dotAhead<V, X, T, 4>(x, xStride, rows, w, cols, k, next, out, outStride);
  } else if (rows <= 3 * V::kTileRows) {
    dotAhead<V, X, T, 2>(x, xStride, rows, w, cols, k, next, out, outStride);
  } else {
    dotAhead<V, X, T, 1>(x, xStride, rows, w, cols, k, next, out, outStride);
  }
}

// sums [Rows] = x[m] . w.
template <class V, class X, class T, int Rows>
inline void dotRow(const X* x, int64_t xStride, const T* w, int64_t k, int64_t ahead, float* sums) {
  typename V::Sum acc[Rows];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) acc[m] = V::Sum::zero();
  int64_t i = 0;
  for (; i + V::kLanes <= k; i += V::kLanes) {
    __builtin_prefetch(reinterpret_cast<const char*>(w + i) + ahead);
    const V b = V::load(w + i);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) acc[m] = fma(V::load(x + m * xStride + i), b, acc[m]);
  }
  if (i < k) {
    const int rest = static_cast<int>(k - i);
    const V b = V::loadPartial(w + i, rest);
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      acc[m] = fma(V::loadPartial(x + m * xStride + i, rest), b, acc[m]);
    }
  }
  constexpr auto at = [](int m) { return std::min(m, Rows - 1); };
  sum4(acc[0], acc[at(1)], acc[at(2)], acc[at(3)], sums);
  if constexpr (Rows > 4) sum4(acc[4], acc[at(5)], acc[at(6)], acc[at(7)], sums + 4);
}

template <class V, class X, class T, int Rows>
void dotStreamRows(const X* x, int64_t xStride, const T* w, int64_t k, int64_t ahead, float* out,
                   int64_t outStride) {
  float sums[8];
  dotRow<V, X, T, Rows>(x, xStride, w, k, ahead, sums);
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) out[m * outStride] += sums[m];
}

// One row of w after the other, which is how memory is fastest, while x stays in the L1 cache.
template <class V, class X, class T>
void dotStreamSingly(const X* x, int64_t rows, const void* w, int64_t wStride, int64_t cols,
                     int64_t k, int64_t slice, int64_t ahead, float* out, int64_t outStride) {
  for (int64_t n = 0; n < cols; ++n) {
    const T* row = static_cast<const T*>(w) + n * wStride;
    for (int64_t begin = 0; begin < k; begin += slice) {
      const int64_t depth = std::min(slice, k - begin);
      for (int64_t m = 0; m < rows; m += 8) {
        const X* from = x + begin * rows + m * slice;
        float* to = out + m * outStride + n;
        const T* part = row + begin;
        switch (std::min<int64_t>(rows - m, 8)) {
          case 1:
            dotStreamRows<V, X, T, 1>(from, slice, part, depth, ahead, to, outStride);
            break;
          case 2:
            dotStreamRows<V, X, T, 2>(from, slice, part, depth, ahead, to, outStride);
            break;
          case 3:
            dotStreamRows<V, X, T, 3>(from, slice, part, depth, ahead, to, outStride);
            break;
          case 4:
            dotStreamRows<V, X, T, 4>(from, slice, part, depth, ahead, to, outStride);
            break;
          case 5:
            dotStreamRows<V, X, T, 5>(from, slice, part, depth, ahead, to, outStride);
            break;
          case 6:
            dotStreamRows<V, X, T, 6>(from, slice, part, depth, ahead, to, outStride);
            break;
          case 7:
            dotStreamRows<V, X, T, 7>(from, slice, part, depth, ahead, to, outStride);
            break;
          default:
            dotStreamRows<V, X, T, 8>(from, slice, part, depth, ahead, to, outStride);
            break;
        }
      }
    }
  }
}

// Four rows of w together, so that x, in the L2 cache, is read a quarter as often. Each row is long
// enough for the processor's own prefetching.
template <class V, class X, class T>
void dotStreamFours(const X* x, int64_t rows, const void* w, int64_t wStride, int64_t cols,
                    int64_t k, int64_t slice, float* out, int64_t outStride) {
  for (int64_t n = 0; n < cols; n += 4) {
    const int64_t count = std::min<int64_t>(4, cols - n);
    for (int64_t begin = 0; begin < k; begin += slice) {
      const int64_t depth = std::min(slice, k - begin);
      const void* wRows[4];
      for (int64_t i = 0; i < count; ++i) {
        wRows[i] = static_cast<const T*>(w) + (n + i) * wStride + begin;
      }
      dotAhead<V, X, T, 0>(x + begin * rows, slice, rows, wRows, count, depth, nullptr, out + n,
                           outStride);
    }
  }
}

template <class V, class X, class T>
void dotStream(const X* x, int64_t rows, const void* w, int64_t wStride, int64_t cols, int64_t k,
               int64_t slice, int64_t ahead, float* out, int64_t outStride) {
  if (ahead > 0) {
    dotStreamSingly<V, X, T>(x, rows, w, wStride, cols, k, slice, ahead, out, outStride);
  } else {
    dotStreamFours<V, X, T>(x, rows, w, wStride, cols, k, slice, out, outStride);
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

}  // namespace
}  // namespace uniproc::simd
