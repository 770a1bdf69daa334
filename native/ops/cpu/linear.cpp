#include "ops/cpu/linear.h"

#include <algorithm>

#include "ops/cpu/weight_rows.h"

namespace uniproc {
namespace {

// The inner loop's tile: sums of kDepth products of 4 rows of x with 4 rows of w, which fit the L1
// cache.
constexpr int64_t kDepth = WeightRows::kCols;
constexpr int64_t kWidth = WeightRows::kRows;
// Floats of x that stay in the L2 cache while the weights stream past.
constexpr int64_t kPanel = 1 << 16;
constexpr int64_t kPanelRows = kPanel / kDepth;
// Multiply-adds that take as long as waking a thread, and the minimum columns of a thread before
// rows are divided too.
constexpr int64_t kMinWorkPerPart = 1 << 16;
constexpr int64_t kMinColsPerPart = 128;

}  // namespace

Linear::Linear(ThreadPool& pool, const Kernels& kernels) : pool_(pool), kernels_(kernels) {}

void Linear::run(const float* x, int64_t rows, const LinearWeight& weight, float* out) {
  if (rows == 0) return;
  const int parts = pool_.numParts(rows * weight.rows * weight.cols, kMinWorkPerPart);
  const int rowParts = static_cast<int>(std::clamp<int64_t>(
      std::min(parts * kMinColsPerPart / weight.rows, rows / kPanelRows), 1, parts));
  const int colParts = parts / rowParts;
  pool_.run(rowParts * colParts, [&](int part, int) {
    const int r = part / colParts;
    const int c = part % colParts;
    const int64_t groups = (weight.rows + kWidth - 1) / kWidth;  // whole tiles
    runPart({x, weight, out}, {rows * r / rowParts, rows * (r + 1) / rowParts},
            {groups * c / colParts * kWidth,
             std::min(groups * (c + 1) / colParts * kWidth, weight.rows)});
  });
}

void Linear::runPart(const Problem& problem, Range rows, Range cols) const {
  startWithBias(problem, rows, cols);
  const auto& [x, weight, out] = problem;
  WeightRows weightRows(weight);
  const auto dot = kernels_.dot[static_cast<int>(weightRows.dtype())];
  for (int64_t row = rows.begin; row < rows.end; row += kPanelRows) {
    const int64_t height = std::min(kPanelRows, rows.end - row);
    const int64_t length = kPanel / height / kDepth * kDepth;  // for one row, the maximum
    for (int64_t begin = 0; begin < weight.cols; begin += length) {
      const int64_t end = std::min(begin + length, weight.cols);
      for (int64_t col = cols.begin; col < cols.end; col += kWidth) {
        const int64_t width = std::min(kWidth, cols.end - col);
        for (int64_t k = begin; k < end; k += kDepth) {
          const int64_t depth = std::min(kDepth, end - k);
          dot(x + row * weight.cols + k, weight.cols, height, weightRows.at(col, width, k, depth),
              width, depth, out + row * weight.rows + col, weight.rows);
        }
      }
    }
  }
}

void Linear::startWithBias(const Problem& problem, Range rows, Range cols) const {
  const auto& [x, weight, out] = problem;
  const Weight& bias = weight.bias;
  const int64_t count = cols.end - cols.begin;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    float* to = out + row * weight.rows + cols.begin;
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
