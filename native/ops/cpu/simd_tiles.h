// Products with quantized weights in tiles (tiles.h). Lanes of a vector are rows of W.
//
// L describes an instruction set's vectors:
//   X              the type of x: float or BFloat16
//   W              a vector with kDepth adjacent columns for each lane's row
//   Sum            a vector of floats; fma(x, w, sum) adds the products of all kDepth columns
//   kTileRows      rows of x whose sums fit the registers, with decoded columns from memory
//   kDirectRows    the same while columns are decoded in registers
//   broadcast(x)   kDepth elements of x in all lanes
//   Codes<Format>  decode(tile) gives the kColumns / kDepth vectors W of a tile's columns, for the
//                  lanes' rows. Codes are exact in W; scales are multiplied with sums.
// A format is added as a layout of tiles (tiles.h), its scales (TileBlock) and its Codes.
//
// An element of out adds the sums of segments of K in order, each times its scale. A segment ends
// with a group of scales, and at the latest after kSegment columns. A segment's products are added
// in the order of its columns. So a sum does not depend on the number of rows of x.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/cpu/kernels.h"
#include "ops/cpu/stored_element.h"
#include "ops/cpu/tiles.h"
#include "ops/linear.h"

namespace uniproc::simd {

// Segments are short, so that the processor works on several of these chains of sums at once.
constexpr int64_t kSegment = 64;
// Bytes that are decoded to the L1 cache at once for many rows of x, and those many rows.
constexpr int64_t kPanelBytes = 16384;
constexpr int64_t kManyRows = 17;
// Bytes from the tiles in use to those that are prefetched.
constexpr int64_t kTilesAhead = 8192;

// A format of elements in tiles; `kHasZeros`: an int4 weight has zero points.
template <StorageType kStored, bool kHasZeros = false>
struct TileFormat {
  static constexpr StorageType kType = kStored;
  static constexpr bool kZeros = kHasZeros;
  static constexpr int64_t kColumns = tileColumns(kStored);
};

// The segments of a slice of K that begins at `sliceBegin`, one after the other, from one that
// begins at `begin`.
struct Segment {
  int64_t begin;
  int64_t group;

  Segment(int64_t scaleCols, int64_t sliceBegin, int64_t first)
      : begin(first),
        group(first / scaleCols),
        scaleCols_(scaleCols),
        groupEnd_((group + 1) * scaleCols),
        longest_(first + kSegment - (first - sliceBegin) % kSegment) {}

  int64_t end(int64_t ofAll) const { return std::min({groupEnd_, longest_, ofAll}); }
  void next() {
    begin = std::min(groupEnd_, longest_);
    if (begin == longest_) longest_ += kSegment;
    if (begin < groupEnd_) return;
    ++group;
    groupEnd_ += scaleCols_;
  }

 private:
  const int64_t scaleCols_;
  int64_t groupEnd_;
  int64_t longest_;  // end of the next kSegment columns of the slice
};

// A block of kBlockRows rows.
template <class Format>
class TileBlock {
 public:
  TileBlock(const LinearWeight& weight, int64_t row)
      : weight_(weight),
        row_(row),
        groups_(weight.scaleColumns()),
        scaleRow_(row / weight.format.scaleRows),
        isUniform_(scaleRow_ == (row + kBlockRows - 1) / weight.format.scaleRows) {}

  const char* tiles(int64_t col) const {
    return static_cast<const char*>(weight_.data) +
           (row_ * bytesOf(Format::kType, weight_.cols) + bytesOf(Format::kType, kBlockRows * col));
  }
  int64_t scaleCols() const { return weight_.format.scaleCols; }
  const uint8_t* zeros(int64_t group) const {
    return Format::kZeros ? weight_.zeros + inBlock(group) : nullptr;
  }
  // The scales of a group for each row, in memory or written to `scratch`; both [kBlockRows].
  const float* scales(int64_t group, float* scratch) const {
    if constexpr (Format::kType == StorageType::kFloat4E2M1) {
      const auto* bytes = static_cast<const uint8_t*>(weight_.scales) + inBlock(group);
      for (int64_t i = 0; i < kBlockRows; ++i) scratch[i] = widenE8M0(bytes[i]);
      return scratch;
    } else {
      const auto* scales = static_cast<const float*>(weight_.scales);
      if (weight_.format.scaleRows == 1) return scales + inBlock(group);
      for (int64_t i = 0; i < kBlockRows; ++i) {
        const int64_t scaleRow = isUniform_ ? scaleRow_ : (row_ + i) / weight_.format.scaleRows;
        scratch[i] = scales[scaleRow * groups_ + group];
      }
      return scratch;
    }
  }

 private:
  int64_t inBlock(int64_t group) const { return row_ * groups_ + group * kBlockRows; }

  const LinearWeight& weight_;
  const int64_t row_;
  const int64_t groups_;
  const int64_t scaleRow_;  // of the first row
  const bool isUniform_;    // all rows have the same scales
};

// Columns that were decoded before: tiles of kDepth columns of 2 vectors.
template <class L>
struct DecodedTiles {
  static constexpr int64_t kColumns = L::kDepth;
  static constexpr int64_t kBytes = L::kLanes * L::kDepth * sizeof(typename L::X);
  static constexpr int64_t kAhead = 0;

  static void decode(const char* tile, typename L::W (&out)[1]) {
    out[0] = L::load(reinterpret_cast<const typename L::X*>(tile));
  }
};

// The codes of a format in a group, for the lanes of rows from `lane` on of the block.
template <class L, class Format>
struct StoredTiles : L::template Codes<Format> {
  static constexpr int64_t kColumns = Format::kColumns;
  static constexpr int64_t kBytes = L::kLanes * 4;
  static constexpr int64_t kAhead = kTilesAhead;

  StoredTiles(const TileBlock<Format>& block, int64_t group, int64_t lane)
      : L::template Codes<Format>(Format::kZeros ? block.zeros(group) + lane : nullptr) {}
};

// acc[m][v] += products of x[m] [cols] and the columns of two vectors of rows. Tiles are
// `tileStride` bytes apart.
template <class L, class Tiles, int Rows>
inline void dotSegment(const typename L::X* x, int64_t xStride, const char* tiles,
                       int64_t tileStride, int64_t cols, const Tiles& codes0, const Tiles& codes1,
                       typename L::Sum (&acc)[Rows][2]) {
  constexpr int kSteps = static_cast<int>(Tiles::kColumns) / L::kDepth;
  for (int64_t col = 0; col < cols; col += Tiles::kColumns, tiles += tileStride) {
    if constexpr (Tiles::kAhead > 0) {
      __builtin_prefetch(tiles + Tiles::kAhead);
      __builtin_prefetch(tiles + Tiles::kAhead + kTileBytes);
    }
    typename L::W w0[kSteps];
    typename L::W w1[kSteps];
    codes0.decode(tiles, w0);
    codes1.decode(tiles + Tiles::kBytes, w1);
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        const auto a = L::broadcast(x + m * xStride + col + step * L::kDepth);
        acc[m][0] = fma(a, w0[step], acc[m][0]);
        acc[m][1] = fma(a, w1[step], acc[m][1]);
      }
    }
  }
}

// sums[m] [kBlockRows] += scales * the segment's products, for the rows of two vectors.
template <class L, class Tiles, int Rows>
inline void addSegment(const typename L::X* x, int64_t xStride, const char* tiles,
                       int64_t tileStride, int64_t cols, const Tiles& codes0, const Tiles& codes1,
                       const float* scales, float* sums) {
  using Sum = typename L::Sum;
  Sum acc[Rows][2];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) acc[m][0] = acc[m][1] = Sum::zero();
  dotSegment<L, Tiles, Rows>(x, xStride, tiles, tileStride, cols, codes0, codes1, acc);
  const Sum scale0 = Sum::load(scales);
  const Sum scale1 = Sum::load(scales + L::kLanes);
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
    float* to = sums + m * kBlockRows;
    fma(acc[m][0], scale0, Sum::load(to)).store(to);
    fma(acc[m][1], scale1, Sum::load(to + L::kLanes)).store(to + L::kLanes);
  }
}

// Few rows: tiles are decoded as they are read from memory.
template <class L, class Format, int Rows>
void addDirect(const typename L::X* x, int64_t xStride, const TileBlock<Format>& block,
               int64_t begin, int64_t end, float* sums) {
  using Tiles = StoredTiles<L, Format>;
  alignas(64) float scratch[kBlockRows];
  for (Segment segment(block.scaleCols(), begin, begin); segment.begin < end; segment.next()) {
    const int64_t cols = segment.end(end) - segment.begin;
    const float* scales = block.scales(segment.group, scratch);
    for (int64_t lane = 0; lane < kBlockRows; lane += 2 * L::kLanes) {
      const Tiles codes0(block, segment.group, lane);
      const Tiles codes1(block, segment.group, lane + L::kLanes);
      addSegment<L, Tiles, Rows>(x + (segment.begin - begin), xStride,
                                 block.tiles(segment.begin) + 4 * lane, 2 * kTileBytes, cols,
                                 codes0, codes1, scales + lane, sums + lane);
    }
  }
}

// Calls run(first row, integral_constant of the number of rows) for tiles of 8, 6, 4, 2 and 1 rows,
// at most kLargest.
template <int kLargest, class Run>
void forTiles(int64_t rows, Run run) {
  int64_t m = 0;
  const auto tile = [&](auto size) {
    if constexpr (size <= kLargest) {
      for (; rows - m >= size; m += size) run(m, size);
    }
  };
  tile(std::integral_constant<int, 8>{});
  tile(std::integral_constant<int, 6>{});
  tile(std::integral_constant<int, 4>{});
  tile(std::integral_constant<int, 2>{});
  tile(std::integral_constant<int, 1>{});
}

// A block's columns, decoded for many rows of x.
template <class L, class Format>
class TilePanel {
 public:
  static constexpr int64_t kPanelColumns =
      kPanelBytes / kBlockRows / static_cast<int64_t>(sizeof(typename L::X));

  TilePanel(const TileBlock<Format>& block, int64_t sliceBegin, int64_t begin, int64_t end) {
    for (Segment segment(block.scaleCols(), sliceBegin, begin); segment.begin < end;
         segment.next()) {
      Part& part = parts_[numParts_++];
      part.begin = segment.begin - begin;
      part.cols = segment.end(end) - segment.begin;
      const float* scales = block.scales(segment.group, part.scales);
      if (scales != part.scales) std::memcpy(part.scales, scales, sizeof part.scales);
      for (int64_t lane = 0; lane < kBlockRows; lane += L::kLanes) {
        decode(StoredTiles<L, Format>(block, segment.group, lane),
               block.tiles(segment.begin) + 4 * lane,
               values_ + part.begin * kBlockRows + lane * L::kDepth, part.cols);
      }
    }
  }

  // Not inlined: where GCC inlined it, it kept sums in memory.
  template <int Rows>
  [[gnu::noinline]] void addTo(const typename L::X* x, int64_t xStride, float* sums) const {
    using Tiles = DecodedTiles<L>;
    constexpr int64_t kStride = kBlockRows * L::kDepth;
    for (int64_t i = 0; i < numParts_; ++i) {
      const Part& part = parts_[i];
      for (int64_t lane = 0; lane < kBlockRows; lane += 2 * L::kLanes) {
        const auto* values = values_ + part.begin * kBlockRows + lane * L::kDepth;
        addSegment<L, Tiles, Rows>(x + part.begin, xStride, reinterpret_cast<const char*>(values),
                                   kStride * sizeof(typename L::X), part.cols, Tiles{}, Tiles{},
                                   part.scales + lane, sums + lane);
      }
    }
  }

 private:
  struct Part {
    int64_t begin;
    int64_t cols;
    alignas(64) float scales[kBlockRows];
  };

  static void decode(const StoredTiles<L, Format>& codes, const char* tiles, typename L::X* to,
                     int64_t cols) {
    constexpr int64_t kColumns = Format::kColumns;
    constexpr int kSteps = static_cast<int>(kColumns) / L::kDepth;
    for (int64_t col = 0; col < cols; col += kColumns, tiles += 2 * kTileBytes) {
      __builtin_prefetch(tiles + kTilesAhead);
      typename L::W w[kSteps];
      codes.decode(tiles, w);
#pragma GCC unroll 8
      for (int step = 0; step < kSteps; ++step) {
        L::store(w[step], to + (col + step * L::kDepth) * kBlockRows);
      }
    }
  }

  int64_t numParts_ = 0;
  Part parts_[kPanelColumns / Format::kColumns];
  alignas(64)
      typename L::X values_[kPanelColumns * kBlockRows];  // [columns / kDepth, rows, kDepth]
};

// Many rows: columns are decoded once for all of them.
template <class L, class Format>
void addMany(const typename L::X* x, int64_t xStride, int64_t rows, const TileBlock<Format>& block,
             int64_t begin, int64_t end, float* sums) {
  using Panel = TilePanel<L, Format>;
  for (int64_t col = begin; col < end; col += Panel::kPanelColumns) {
    const Panel panel(block, begin, col, std::min(end, col + Panel::kPanelColumns));
    forTiles<L::kTileRows>(rows, [&](int64_t m, auto size) {
      panel.template addTo<size>(x + m * xStride + (col - begin), xStride, sums + m * kBlockRows);
    });
  }
}

// The sums of a block are kept together meanwhile, as rows of out are often a power of two apart,
// so that the caches do not keep them.
template <class L, class Format>
void dotTilesOf(const typename L::X* x, int64_t rows, const LinearWeight& weight, int64_t row,
                int64_t cols, int64_t begin, int64_t k, int64_t slice, float* out,
                int64_t outStride) {
  constexpr auto kSumBytes = static_cast<size_t>(kBlockRows) * sizeof(float);
  alignas(64) float sums[kMaxProductRows * kBlockRows];
  for (int64_t n = 0; n < cols; n += kBlockRows) {
    const TileBlock<Format> block(weight, row + n);
    for (int64_t m = 0; m < rows; ++m) {
      std::memcpy(sums + m * kBlockRows, out + m * outStride + n, kSumBytes);
    }
    for (int64_t k0 = 0; k0 < k; k0 += slice) {
      const int64_t end = begin + std::min(k0 + slice, k);
      if (rows >= kManyRows) {
        addMany<L>(x + k0 * rows, slice, rows, block, begin + k0, end, sums);
      } else {
        forTiles<L::kDirectRows>(rows, [&](int64_t m, auto size) {
          addDirect<L, Format, size>(x + k0 * rows + m * slice, slice, block, begin + k0, end,
                                     sums + m * kBlockRows);
        });
      }
    }
    for (int64_t m = 0; m < rows; ++m) {
      std::memcpy(out + m * outStride + n, sums + m * kBlockRows, kSumBytes);
    }
  }
}

// Arguments as dotStored's; `row` and `cols` are multiples of kBlockRows, `rows` at most
// kMaxProductRows.
template <class L, StorageType kType>
void dotTiles(const typename L::X* x, int64_t rows, const LinearWeight& weight, int64_t row,
              int64_t cols, int64_t begin, int64_t k, int64_t slice, float* out,
              int64_t outStride) {
  if constexpr (kType == StorageType::kUInt4) {
    if (weight.zeros) {
      return dotTilesOf<L, TileFormat<kType, true>>(x, rows, weight, row, cols, begin, k, slice,
                                                    out, outStride);
    }
  }
  dotTilesOf<L, TileFormat<kType>>(x, rows, weight, row, cols, begin, k, slice, out, outStride);
}

template <class L, class Function>
constexpr void setTiles(Function (&table)[kNumStoredTypes]) {
  table[indexOfStored(StorageType::kFloat8E4M3)] = dotTiles<L, StorageType::kFloat8E4M3>;
  table[indexOfStored(StorageType::kInt8)] = dotTiles<L, StorageType::kInt8>;
  table[indexOfStored(StorageType::kUInt4)] = dotTiles<L, StorageType::kUInt4>;
  table[indexOfStored(StorageType::kFloat4E2M1)] = dotTiles<L, StorageType::kFloat4E2M1>;
}

}  // namespace uniproc::simd
