#include "ops/cpu/linear.h"

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "base/float_types.h"
#include "ops/cpu/tiles.h"
#include "ops/cpu/weight_rows.h"

namespace uniproc {
namespace {

// Products in a slice of K, for x in type X.
template <class X>
constexpr int64_t kSlice = WeightRows::kRowBytes / static_cast<int64_t>(sizeof(X));
// Rows of x in a panel, for a slice of K: stay in the L2 cache while the weights stream past.
constexpr int64_t kPanelRows = 128;
constexpr int64_t kPanelBytes = kPanelRows * WeightRows::kRowBytes;
static_assert(kPanelRows <= kMaxProductRows && kPanelBytes <= kMaxProductBytes);
// Up to so many rows, weights are multiplied as they stream from memory.
template <class X>
constexpr int64_t kFewRows = 16 / static_cast<int64_t>(sizeof(X));
// Slices of rows of x that stay in the L1 cache meanwhile; with whole rows of x beyond half of
// that, they had better be in the L2 cache, for up to kFewTileRows rows.
constexpr int64_t kFewSlices = 16;
constexpr int64_t kFewTileRows = 4;
// Bytes from the weights in use to those that are prefetched.
constexpr int64_t kAhead = 8192;
// Parts have a multiple of so many columns of out: the inner loop's tile.
constexpr int64_t kTileCols = 4;
// Multiply-adds that take as long as waking a thread, and the minimum columns of a thread before
// rows are divided too.
constexpr int64_t kMinWorkPerPart = 1 << 16;
constexpr int64_t kMinColsPerPart = 128;

}  // namespace

struct Linear::Panel {
  alignas(64) std::byte bytes[kPanelBytes];
};

Linear::Linear(ThreadPool& pool, const Kernels& kernels)
    : pool_(pool),
      kernels_(kernels),
      panels_(std::make_unique<Panel[]>(static_cast<size_t>(pool.numThreads()))) {}

Linear::~Linear() = default;

void Linear::arrange(LinearWeight& weight, int64_t sliceRows) {
  if (isFloat(weight.format.type) || weight.isArranged) return;
  const int type = indexOfStored(weight.format.type);
  if (!kernels_.dotTiles[type] && !takesBFloat16(weight)) return;
  if (!canTile(weight, sliceRows)) return;
  pool_.parallelFor(weight.rows / kBlockRows, /*minPerPart=*/1,
                    [&](int64_t begin, int64_t end, int) { tileBlocks(weight, begin, end); });
  weight.isArranged = true;
}

bool Linear::takesBFloat16(const LinearWeight& weight) const {
  if (weight.dtype != DType::kBFloat16) return false;
  if (isFloat(weight.format.type)) {
    return weight.format.type == StorageType::kBFloat16 && kernels_.dotBFloat16;
  }
  return kernels_.dotTilesBFloat16[indexOfStored(weight.format.type)];
}

void Linear::run(const float* x, int64_t rows, const LinearWeight& weight, float* out) {
  if (rows == 0) return;
  if (!weight.parts) return runPart(x, rows, weight, out, weight.rows);
  for (int32_t i = 0; i < weight.numParts; ++i) {
    runPart(x, rows, weight.parts[i], out, weight.rows);
    out += weight.parts[i].rows;
  }
}

void Linear::runPart(const float* x, int64_t rows, const LinearWeight& weight, float* out,
                     int64_t outStride) {
  if (weight.order) x = inOrder(x, rows, weight);
  const int parts = pool_.numParts(rows * weight.rows * weight.cols, kMinWorkPerPart);
  const int rowParts = static_cast<int>(std::clamp<int64_t>(
      std::min(parts * kMinColsPerPart / weight.rows, rows / kPanelRows), 1, parts));
  const int colParts = parts / rowParts;
  const Problem problem{x, weight, out, outStride};
  pool_.run(rowParts * colParts, [&](int part, int thread) {
    const int r = part / colParts;
    const int c = part % colParts;
    const int64_t tile = weight.isArranged ? kBlockRows : kTileCols;
    const int64_t groups = (weight.rows + tile - 1) / tile;  // whole tiles
    const Range partRows{rows * r / rowParts, rows * (r + 1) / rowParts};
    const Range partCols{groups * c / colParts * tile,
                         std::min(groups * (c + 1) / colParts * tile, weight.rows)};
    startWithBias(problem, partRows, partCols);
    Panel& panel = panels_[static_cast<size_t>(thread)];
    if (takesBFloat16(weight) && (weight.isArranged || isFloat(weight.format.type))) {
      multiply<BFloat16>(problem, partRows, partCols, panel);
    } else {
      multiply<float>(problem, partRows, partCols, panel);
    }
  });
}

template <class X>
void Linear::multiply(const Problem& problem, Range rows, Range cols, Panel& panel) const {
  for (int64_t row = rows.begin; row < rows.end; row += kPanelRows) {
    const Range some{row, std::min(row + kPanelRows, rows.end)};
    const bool isStored = !isFloat(problem.weight.format.type);
    if (problem.weight.isArranged) {
      multiplyTiles<X>(problem, some, cols, panel);
    } else if (some.size() > kFewRows<X> || (isStored && !canDecodeVectors(problem.weight))) {
      multiplyMany<X>(problem, some, cols, panel);
    } else if (isStored) {
      multiplyFewStored(problem, some, cols, panel);
    } else {
      multiplyFew<X>(problem, some, cols, panel);
    }
  }
}

template <class X>
void Linear::multiplyFew(const Problem& problem, Range rows, Range cols, Panel& panel) const {
  const LinearWeight& weight = problem.weight;
  const auto dot = [&] {
    if constexpr (std::is_same_v<X, float>) {
      return kernels_.dotStream[static_cast<int>(dtypeOf(weight.format.type))];
    } else {
      return kernels_.dotStreamBFloat16;
    }
  }();
  const auto elementBytes = static_cast<int64_t>(sizeOf(weight.format.type));
  const int64_t rowBytes = weight.cols * elementBytes;
  const int64_t slices = (weight.cols + kSlice<X> - 1) / kSlice<X> * rows.size();
  const bool inL2 = rows.size() <= kFewTileRows && slices > kFewSlices / 2;
  const int64_t length = (inL2 ? kPanelRows : kFewSlices) / rows.size() * kSlice<X>;
  // A whole row is followed by the next one in memory; of a part of a row, the same part of a later
  // row will follow.
  const int64_t partBytes = length * elementBytes;
  const int64_t ahead = inL2                    ? 0
                        : length >= weight.cols ? kAhead
                                                : (kAhead + partBytes - 1) / partBytes * rowBytes;
  for (int64_t begin = 0; begin < weight.cols; begin += length) {
    const Range ks{begin, std::min(begin + length, weight.cols)};
    const X* packed = pack<X>(problem, rows, ks, panel);
    const char* from =
        static_cast<const char*>(weight.data) + cols.begin * rowBytes + begin * elementBytes;
    dot(packed, rows.size(), from, weight.cols, cols.size(), ks.size(), kSlice<X>, ahead,
        problem.out + rows.begin * problem.outStride + cols.begin, problem.outStride);
  }
}

void Linear::multiplyFewStored(const Problem& problem, Range rows, Range cols, Panel& panel) const {
  const LinearWeight& weight = problem.weight;
  const auto dot = kernels_.dotStored[indexOfStored(weight.format.type)];
  const int64_t length = kPanelRows / rows.size() * kSlice<float>;
  for (int64_t begin = 0; begin < weight.cols; begin += length) {
    const Range ks{begin, std::min(begin + length, weight.cols)};
    const float* packed = pack<float>(problem, rows, ks, panel);
    dot(packed, rows.size(), weight, cols.begin, cols.size(), ks.begin, ks.size(), kSlice<float>,
        problem.out + rows.begin * problem.outStride + cols.begin, problem.outStride);
  }
}

template <class X>
void Linear::multiplyTiles(const Problem& problem, Range rows, Range cols, Panel& panel) const {
  const LinearWeight& weight = problem.weight;
  const int type = indexOfStored(weight.format.type);
  const auto dot = [&] {
    if constexpr (std::is_same_v<X, float>) {
      return kernels_.dotTiles[type];
    } else {
      return kernels_.dotTilesBFloat16[type];
    }
  }();
  const int64_t length = kPanelRows / rows.size() * kSlice<X>;
  for (int64_t begin = 0; begin < weight.cols; begin += length) {
    const Range ks{begin, std::min(begin + length, weight.cols)};
    const X* packed = pack<X>(problem, rows, ks, panel);
    dot(packed, rows.size(), weight, cols.begin, cols.size(), ks.begin, ks.size(), kSlice<X>,
        problem.out + rows.begin * problem.outStride + cols.begin, problem.outStride);
  }
}

template <class X>
void Linear::multiplyMany(const Problem& problem, Range rows, Range cols, Panel& panel) const {
  constexpr bool kIsFloat = std::is_same_v<X, float>;
  constexpr int64_t kDepth = kSlice<X>;
  const LinearWeight& weight = problem.weight;
  const auto dot = [&] {
    if constexpr (kIsFloat) {
      return kernels_.dot[static_cast<int>(DType::kFloat32)];
    } else {
      return kernels_.dotBFloat16;
    }
  }();
  WeightRows pieces(weight, kernels_, !kIsFloat);
  float* out = problem.out + rows.begin * problem.outStride;
  const int64_t length = kPanelRows / rows.size() * kDepth;
  for (int64_t begin = 0; begin < weight.cols; begin += length) {
    const Range ks{begin, std::min(begin + length, weight.cols)};
    const X* packed = pack<X>(problem, rows, ks, panel);
    for (int64_t col = cols.begin; col < cols.end; col += WeightRows::kRows) {
      const int64_t width = std::min(WeightRows::kRows, cols.end - col);
      for (int64_t k = begin; k < ks.end; k += kDepth) {
        const int64_t depth = std::min(kDepth, ks.end - k);
        const bool isLast = k + kDepth >= ks.end;
        const void* const* next =
            pieces.sources(isLast ? col + width : col, width, isLast ? begin : k + kDepth);
        dot(packed + (k - begin) * rows.size(), kDepth, rows.size(),
            pieces.at(col, width, k, depth), width, depth, next, out + col, problem.outStride);
      }
    }
  }
}

template <class X>
const X* Linear::pack(const Problem& problem, Range rows, Range ks, Panel& panel) const {
  constexpr DType dtype = std::is_same_v<X, float> ? DType::kFloat32 : DType::kBFloat16;
  const auto narrow = kernels_.narrow[static_cast<int>(dtype)];
  X* packed = reinterpret_cast<X*>(panel.bytes);
  for (int64_t k = ks.begin; k < ks.end; k += kSlice<X>) {
    const int64_t depth = std::min(kSlice<X>, ks.end - k);
    for (int64_t i = 0; i < rows.size(); ++i) {
      narrow(problem.x + (rows.begin + i) * problem.weight.cols + k, depth,
             packed + (k - ks.begin) * rows.size() + i * kSlice<X>);
    }
  }
  return packed;
}

const float* Linear::inOrder(const float* x, int64_t rows, const LinearWeight& weight) {
  ordered_.resize(static_cast<size_t>(rows * weight.cols));
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * weight.widthOfInput();
    float* to = ordered_.data() + row * weight.cols;
    for (int64_t col = 0; col < weight.cols; ++col) {
      const int32_t source = weight.order[col];
      to[col] = source < 0 ? 0.0f : from[source];
    }
  }
  return ordered_.data();
}

void Linear::startWithBias(const Problem& problem, Range rows, Range cols) const {
  const auto& [x, weight, out, outStride] = problem;
  const Weight& bias = weight.bias;
  const int64_t count = cols.end - cols.begin;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    float* to = out + row * outStride + cols.begin;
    if (bias) {
      const auto offset = static_cast<size_t>(cols.begin) * sizeOf(bias.dtype);
      kernels_.widen[static_cast<int>(bias.dtype)](static_cast<const char*>(bias.data) + offset,
                                                   count, to);
    } else {
      std::fill_n(to, count, 0.0f);
    }
  }
}

}  // namespace uniproc
