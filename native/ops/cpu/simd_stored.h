// Products with quantized weights, which are decoded as they stream from memory. V loads vectors of
// int8_t and Float8E4M3, and looks up vectors of 4-bit codes in a table of 16 floats.
//
// Blocks of scales must have a multiple of kStoredColumns columns, or all of them. Sums are those
// of simd_dot.h over the decoded elements, bit by bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ops/cpu/simd_dot.h"
#include "ops/cpu/stored_element.h"
#include "ops/linear.h"

namespace uniproc::simd {
// Each source its own, for its instructions.
namespace {

// A type of stored elements; `kHasZeros`: an int4 weight has zero points.
template <StorageType kStored, bool kHasZeros = false>
struct StoredType {
  static constexpr StorageType kType = kStored;
  static constexpr bool kZeros = kHasZeros;
};

// Where a row of the weight begins, and its blocks.
template <class Type>
struct StoredRow {
  const char* data;
  const void* scales;
  const uint8_t* zeros;

  StoredRow(const LinearWeight& weight, int64_t row) {
    const WeightFormat& format = weight.format;
    if constexpr (isBlocks(Type::kType)) {
      data = static_cast<const char*>(weight.data) + row * bytesOf(Type::kType, weight.cols);
      scales = nullptr;
      zeros = nullptr;
      return;
    }
    const int64_t block = row / format.scaleRows * weight.scaleColumns();
    data = static_cast<const char*>(weight.data) + bytesOf(Type::kType, row * weight.cols);
    scales = static_cast<const char*>(weight.scales) + block * format.scaleBytes();
    zeros = Type::kZeros ? weight.zeros + block : nullptr;
  }
  float scale(int64_t block) const {
    if constexpr (Type::kType == StorageType::kFloat4E2M1) {
      return widenE8M0(static_cast<const uint8_t*>(scales)[block]);
    } else {
      return static_cast<const float*>(scales)[block];
    }
  }
};

// The elements of a row of the weight within one block of scales.
template <class V, class Type>
class Decoder {
 public:
  Decoder(const StoredRow<Type>& row, int64_t block) : scale_(V::broadcast(row.scale(block))) {}
  V load(const char* row, int64_t col) const { return V::load(elements(row) + col) * scale_; }

 private:
  static const auto* elements(const char* row) {
    if constexpr (Type::kType == StorageType::kInt8) {
      return reinterpret_cast<const int8_t*>(row);
    } else {
      return reinterpret_cast<const Float8E4M3*>(row);
    }
  }

  V scale_;
};

inline constexpr float kCodes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
inline constexpr float kCodesLess8[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

template <class V, class Type>
  requires(isPacked(Type::kType))
class Decoder<V, Type> {
 public:
  Decoder(const StoredRow<Type>& row, int64_t block) : table_(tableOf(row, block)) {}
  V load(const char* row, int64_t col) const { return table_.at(V::codes(row + col / 2)); }

 private:
  static typename V::Table tableOf(const StoredRow<Type>& row, int64_t block) {
    const float scale = row.scale(block);
    if constexpr (Type::kType == StorageType::kFloat4E2M1) return {kFloat4Values, scale};
    if constexpr (!Type::kZeros) return {kCodesLess8, scale};
    return {kCodes, static_cast<float>(row.zeros[block]), scale};
  }

  typename V::Table table_;
};

// The codes of a group are made bytes first, whatever their bits.
template <class V, class Type>
  requires(isBlocks(Type::kType))
class Decoder<V, Type> {
 public:
  Decoder(const StoredRow<Type>& row, int64_t group) : first_(group * kCols) {
    gguf::readRowGroup<Type::kType>(row.data, group, &group_);
    scale_ = V::broadcast(group_.scale);
    min_ = V::broadcast(group_.min);
  }
  V load(const char*, int64_t col) const {
    const V codes = V::load(group_.codes + (col - first_));
    if constexpr (gguf::kHasMin<Type::kType>) return fma(codes, scale_, min_);
    return codes * scale_;
  }

 private:
  static constexpr int64_t kCols = gguf::kGroupCols<Type::kType>;

  const int64_t first_;
  gguf::Group<Type::kType> group_;
  V scale_;
  V min_;
};

// Columns with one scale.
template <class Type>
int64_t groupCols(const LinearWeight& weight) {
  if constexpr (isBlocks(Type::kType)) return gguf::kGroupCols<Type::kType>;
  return weight.format.scaleCols;
}

// Fewer elements than a vector has.
template <class V>
V loadStoredPartial(const LinearWeight& weight, int64_t row, int64_t col, int64_t count) {
  float lanes[V::kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = storedElement(weight, row, col + i);
  return V::load(lanes);
}

// out [width] = elements [col, col + width) of a row; col is a multiple of kStoredColumns.
template <class V, class Type>
void decodeRowOf(const LinearWeight& weight, int64_t row, int64_t col, int64_t width, float* out) {
  const StoredRow<Type> from(weight, row);
  const int64_t scaleCols = groupCols<Type>(weight);
  int64_t block = col / scaleCols;
  int64_t blockEnd = (block + 1) * scaleCols - col;
  for (int64_t i = 0; i < width; ++block, blockEnd += scaleCols) {
    const int64_t end = std::min(width, blockEnd);
    const Decoder<V, Type> decoder(from, block);
    for (; i + V::kLanes <= end; i += V::kLanes) decoder.load(from.data, col + i).store(out + i);
    for (; i < end; ++i) out[i] = storedElement(weight, row, col + i);
  }
}

template <class V, StorageType kType>
void decodeRow(const LinearWeight& weight, int64_t row, int64_t col, int64_t width, float* out) {
  if (kType == StorageType::kUInt4 && weight.zeros) {
    decodeRowOf<V, StoredType<kType, true>>(weight, row, col, width, out);
  } else {
    decodeRowOf<V, StoredType<kType>>(weight, row, col, width, out);
  }
}

// The processor's own prefetching ends with a page, which few rows fill.
inline void prefetchBytes(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

// sums [Rows, 4] = x[m] [k] . elements [col, col + k) of rows [row, row + 4), the last repeated
// beyond `count`.
template <class V, class Type, int Rows>
void dotStoredTile(const float* x, int64_t xStride, const LinearWeight& weight, int64_t row,
                   int64_t count, int64_t col, int64_t k, float* sums) {
  const auto at = [&](int64_t n) { return StoredRow<Type>(weight, row + std::min(n, count - 1)); };
  const StoredRow<Type> from[4] = {at(0), at(1), at(2), at(3)};
  const int64_t scaleCols = groupCols<Type>(weight);
  V acc[Rows][4];
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) acc[m][n] = V::zero();
  }
  int64_t block = col / scaleCols;
  int64_t blockEnd = (block + 1) * scaleCols - col;
  const int64_t whole = k - k % V::kLanes;
  for (int64_t i = 0; i < whole; ++block, blockEnd += scaleCols) {
    const int64_t end = std::min(whole, blockEnd);
    const Decoder<V, Type> d0(from[0], block);
    const Decoder<V, Type> d1(from[1], block);
    const Decoder<V, Type> d2(from[2], block);
    const Decoder<V, Type> d3(from[3], block);
    for (; i < end; i += V::kLanes) {
      const V b[4] = {d0.load(from[0].data, col + i), d1.load(from[1].data, col + i),
                      d2.load(from[2].data, col + i), d3.load(from[3].data, col + i)};
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) {
        const V a = V::load(x + m * xStride + i);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) acc[m][n] = fma(a, b[n], acc[m][n]);
      }
    }
  }
  if (whole < k) {
    const auto rest = static_cast<int>(k - whole);
    V b[4];
    for (int64_t n = 0; n < 4; ++n) {
      b[n] = loadStoredPartial<V>(weight, row + std::min(n, count - 1), col + whole, rest);
    }
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      const V a = V::loadPartial(x + m * xStride + whole, rest);
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) acc[m][n] = fma(a, b[n], acc[m][n]);
    }
  }
  sumTile(acc, sums);
}

template <class V, class Type, int Rows>
void dotStoredRows(const float* x, int64_t xStride, const LinearWeight& weight, int64_t row,
                   int64_t count, int64_t col, int64_t k, float* out, int64_t outStride) {
  float sums[Rows * 4];
  dotStoredTile<V, Type, Rows>(x, xStride, weight, row, count, col, k, sums);
  for (int m = 0; m < Rows; ++m) {
    for (int64_t n = 0; n < count; ++n) out[m * outStride + n] += sums[m * 4 + n];
  }
}

template <class V, class Type>
void dotStoredOf(const float* x, int64_t rows, const LinearWeight& weight, int64_t row,
                 int64_t cols, int64_t begin, int64_t k, int64_t slice, float* out,
                 int64_t outStride) {
  constexpr int kRows = V::kTileRows;
  const int64_t rowBytes = bytesOf(Type::kType, weight.cols);
  for (int64_t n = 0; n < cols; n += 4) {
    const int64_t count = std::min<int64_t>(4, cols - n);
    const bool hasNext = n + 8 <= cols;
    for (int64_t k0 = 0; k0 < k; k0 += slice) {
      const int64_t depth = std::min(slice, k - k0);
      if (hasNext) {
        const char* next = static_cast<const char*>(weight.data) + (row + n + 4) * rowBytes +
                           bytesOf(Type::kType, begin + k0);
        for (int i = 0; i < 4; ++i) {
          prefetchBytes(next + i * rowBytes, bytesOf(Type::kType, depth));
        }
      }
      for (int64_t m = 0; m < rows;) {
        const float* from = x + k0 * rows + m * slice;
        float* to = out + m * outStride + n;
        const auto run = [&](auto tile) {
          dotStoredRows<V, Type, tile>(from, slice, weight, row + n, count, begin + k0, depth, to,
                                       outStride);
          return int64_t{tile};
        };
        const int64_t left = rows - m;
        if (left >= kRows) {
          m += run(std::integral_constant<int, kRows>{});
        } else if (kRows > 2 && left >= 2) {
          m += run(std::integral_constant<int, 2>{});
        } else {
          m += run(std::integral_constant<int, 1>{});
        }
      }
    }
  }
}

// Arguments as dotStream's; the weight's rows [row, row + cols), columns [begin, begin + k).
template <class V, StorageType kType>
void dotStored(const float* x, int64_t rows, const LinearWeight& weight, int64_t row, int64_t cols,
               int64_t begin, int64_t k, int64_t slice, float* out, int64_t outStride) {
  if (kType == StorageType::kUInt4 && weight.zeros) {
    dotStoredOf<V, StoredType<kType, true>>(x, rows, weight, row, cols, begin, k, slice, out,
                                            outStride);
  } else {
    dotStoredOf<V, StoredType<kType>>(x, rows, weight, row, cols, begin, k, slice, out, outStride);
  }
}

}  // namespace
}  // namespace uniproc::simd
