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
// A format is added as a layout of tiles (tiles.h), its scales (TileBlock) and its Codes. Decoding
// may move Codes on to what the next tile of the group needs.
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
#include "ops/cpu/simd_tile_blocks.h"
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
      : L::template Codes<Format>(block.beside(group, lane)) {
    // High bits of Q3_K are those of two groups.
    if constexpr (Format::kType == StorageType::kQ3K) this->skipTiles(group % 2);
  }
};

// What is added to the sums of x[m] and a group beside scaled products: minimums of the block's
// rows, times x's sum over the columns.
struct Minimums {
  const float* mins;   // [kBlockRows]
  const float* xSums;  // of x[m] at m * stride
  int64_t stride;

  Minimums rowsFrom(int64_t lane) const { return {mins + lane, xSums, stride}; }
};
struct NoMinimums {
  NoMinimums rowsFrom(int64_t) const { return {}; }
};

// acc[m][v] += products of x[m] [cols] and the columns of two vectors of rows. Tiles are
// `tileStride` bytes apart.
template <class L, class Tiles, int Rows>
inline void dotSegment(const typename L::X* x, int64_t xStride, const char* tiles,
                       int64_t tileStride, int64_t cols, Tiles codes0, Tiles codes1,
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

// sums[m] [kBlockRows] += scales * the segment's products (+ minimums), for the rows of two
// vectors.
template <class L, class Tiles, int Rows, class Added>
inline void addSegment(const typename L::X* x, int64_t xStride, const char* tiles,
                       int64_t tileStride, int64_t cols, const Tiles& codes0, const Tiles& codes1,
                       const float* scales, const Added& added, float* sums) {
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
    Sum sum0 = Sum::load(to);
    Sum sum1 = Sum::load(to + L::kLanes);
    if constexpr (!std::is_same_v<Added, NoMinimums>) {
      const Sum xSum = Sum::broadcast(added.xSums[m * added.stride]);
      sum0 = fma(xSum, Sum::load(added.mins), sum0);
      sum1 = fma(xSum, Sum::load(added.mins + L::kLanes), sum1);
    }
    fma(acc[m][0], scale0, sum0).store(to);
    fma(acc[m][1], scale1, sum1).store(to + L::kLanes);
  }
}

// The sums over groups of x's rows, of a format with minimums.
template <class L, class Format>
class GroupSums {
 public:
  // x holds slices of `slice` columns one after another, each [rows, slice], of columns [begin,
  // begin + k).
  GroupSums(const typename L::X* x, int64_t rows, int64_t begin, int64_t k, int64_t slice)
      : firstGroup_(begin / kCols), stride_(k / kCols) {
    for (int64_t k0 = 0; k0 < k; k0 += slice) {
      const int64_t groups = std::min(slice, k - k0) / kCols;
      for (int64_t m = 0; m < rows; ++m) {
        addUp(x + k0 * rows + m * slice, groups, sums_ + m * stride_ + k0 / kCols);
      }
    }
  }
  // Of row m; those of the rows behind it are stride() further on.
  const float* of(int64_t m, int64_t group) const {
    return sums_ + m * stride_ + (group - firstGroup_);
  }
  int64_t stride() const { return stride_; }

 private:
  using Sum = typename L::Sum;
  static constexpr int64_t kCols = gguf::kGroupCols<Format::kType>;

  static void addUp(const typename L::X* x, int64_t groups, float* out) {
    for (int64_t group = 0; group < groups; group += 4) {
      Sum sums[4];
      for (int64_t i = 0; i < 4; ++i) {
        const auto* from = x + std::min(group + i, groups - 1) * kCols;
        sums[i] = Sum::load(from);
        for (int64_t col = L::kLanes; col < kCols; col += L::kLanes) {
          sums[i] = sums[i] + Sum::load(from + col);
        }
      }
      float four[4];
      sum4(sums[0], sums[1], sums[2], sums[3], four);
      std::copy_n(four, std::min<int64_t>(4, groups - group), out + group);
    }
  }

  const int64_t firstGroup_;
  const int64_t stride_;
  // [rows, groups]; x fills a panel at most.
  alignas(64) float sums_[kMaxProductBytes / sizeof(typename L::X) / kCols];
};

template <class L, class Format>
  requires(!Format::kHasMin)
class GroupSums<L, Format> {
 public:
  GroupSums(const typename L::X*, int64_t, int64_t, int64_t, int64_t) {}
};

template <class L, class Format>
auto minimumsOf(const TileBlock<Format>& block, const GroupSums<L, Format>& xSums, int64_t m,
                int64_t group, float* scratch) {
  if constexpr (Format::kHasMin) {
    return Minimums{block.template mins<typename L::Sum>(group, scratch), xSums.of(m, group),
                    xSums.stride()};
  } else {
    return NoMinimums{};
  }
}

// Few rows: tiles are decoded as they are read from memory.
template <class L, class Format, int Rows>
void addDirect(const typename L::X* x, int64_t xStride, const GroupSums<L, Format>& xSums,
               int64_t m, const TileBlock<Format>& block, int64_t begin, int64_t end, float* sums) {
  using Tiles = StoredTiles<L, Format>;
  alignas(64) float scratch[kBlockRows];
  alignas(64) float minScratch[kBlockRows];
  for (Segment segment(block.scaleCols(), begin, begin); segment.begin < end; segment.next()) {
    const int64_t cols = segment.end(end) - segment.begin;
    const float* scales = block.template scales<typename L::Sum>(segment.group, scratch);
    const auto added = minimumsOf<L>(block, xSums, m, segment.group, minScratch);
    for (int64_t lane = 0; lane < kBlockRows; lane += 2 * L::kLanes) {
      const Tiles codes0(block, segment.group, lane);
      const Tiles codes1(block, segment.group, lane + L::kLanes);
      addSegment<L, Tiles, Rows>(x + (segment.begin - begin), xStride,
                                 block.tiles(segment.begin) + 4 * lane, 2 * kTileBytes, cols,
                                 codes0, codes1, scales + lane, added.rowsFrom(lane), sums + lane);
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
      part.group = segment.group;
      const float* scales = block.template scales<typename L::Sum>(segment.group, part.scales);
      if (scales != part.scales) std::memcpy(part.scales, scales, sizeof part.scales);
      if constexpr (Format::kHasMin) {
        block.template mins<typename L::Sum>(segment.group, part.mins);
      }
      for (int64_t lane = 0; lane < kBlockRows; lane += L::kLanes) {
        decode(StoredTiles<L, Format>(block, segment.group, lane),
               block.tiles(segment.begin) + 4 * lane,
               values_ + part.begin * kBlockRows + lane * L::kDepth, part.cols);
      }
    }
  }

  // Not inlined: where GCC inlined it, it kept sums in memory.
  template <int Rows>
  [[gnu::noinline]] void addTo(const typename L::X* x, int64_t xStride,
                               const GroupSums<L, Format>& xSums, int64_t m, float* sums) const {
    using Tiles = DecodedTiles<L>;
    constexpr int64_t kStride = kBlockRows * L::kDepth;
    for (int64_t i = 0; i < numParts_; ++i) {
      const Part& part = parts_[i];
      const auto added = [&] {
        if constexpr (Format::kHasMin) {
          return Minimums{part.mins, xSums.of(m, part.group), xSums.stride()};
        } else {
          return NoMinimums{};
        }
      }();
      for (int64_t lane = 0; lane < kBlockRows; lane += 2 * L::kLanes) {
        const auto* values = values_ + part.begin * kBlockRows + lane * L::kDepth;
        addSegment<L, Tiles, Rows>(x + part.begin, xStride, reinterpret_cast<const char*>(values),
                                   kStride * sizeof(typename L::X), part.cols, Tiles{}, Tiles{},
                                   part.scales + lane, added.rowsFrom(lane), sums + lane);
      }
    }
  }

 private:
  struct Part {
    int64_t begin;
    int64_t cols;
    int64_t group;
    alignas(64) float scales[kBlockRows];
    alignas(64) float mins[Format::kHasMin ? kBlockRows : 1];
  };

  static void decode(StoredTiles<L, Format> codes, const char* tiles, typename L::X* to,
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
void addMany(const typename L::X* x, int64_t xStride, int64_t rows,
             const GroupSums<L, Format>& xSums, const TileBlock<Format>& block, int64_t begin,
             int64_t end, float* sums) {
  using Panel = TilePanel<L, Format>;
  for (int64_t col = begin; col < end; col += Panel::kPanelColumns) {
    const Panel panel(block, begin, col, std::min(end, col + Panel::kPanelColumns));
    forTiles<L::kTileRows>(rows, [&](int64_t m, auto size) {
      panel.template addTo<size>(x + m * xStride + (col - begin), xStride, xSums, m,
                                 sums + m * kBlockRows);
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
  const GroupSums<L, Format> xSums(x, rows, begin, k, slice);
  for (int64_t n = 0; n < cols; n += kBlockRows) {
    const TileBlock<Format> block(weight, row + n);
    for (int64_t m = 0; m < rows; ++m) {
      std::memcpy(sums + m * kBlockRows, out + m * outStride + n, kSumBytes);
    }
    for (int64_t k0 = 0; k0 < k; k0 += slice) {
      const int64_t end = begin + std::min(k0 + slice, k);
      if (rows >= kManyRows) {
        addMany<L>(x + k0 * rows, slice, rows, xSums, block, begin + k0, end, sums);
      } else {
        forTiles<L::kDirectRows>(rows, [&](int64_t m, auto size) {
          addDirect<L, Format, size>(x + k0 * rows + m * slice, slice, xSums, m, block, begin + k0,
                                     end, sums + m * kBlockRows);
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

template <StorageType kType>
using Stored = std::integral_constant<StorageType, kType>;

template <class L, class Function>
constexpr void setTiles(Function (&table)[kNumStoredTypes]) {
  using enum StorageType;
  const auto set = [&](auto... types) {
    ((table[indexOfStored(types())] = dotTiles<L, types()>), ...);
  };
  set(Stored<kFloat8E4M3>{}, Stored<kInt8>{}, Stored<kUInt4>{}, Stored<kFloat4E2M1>{});
  set(Stored<kQ4_0>{}, Stored<kQ4_1>{}, Stored<kQ5_0>{}, Stored<kQ5_1>{}, Stored<kQ8_0>{});
  set(Stored<kQ2K>{}, Stored<kQ3K>{}, Stored<kQ4K>{}, Stored<kQ5K>{}, Stored<kQ6K>{});
  set(Stored<kIQ4NL>{}, Stored<kIQ4XS>{}, Stored<kMXFP4>{});
}

}  // namespace uniproc::simd
