#include "ops/cpu/matmul.h"

#include <algorithm>
#include <cstring>

namespace uniproc {
namespace {

// The products that are added up in one go, 4 rows of x with 4 of w: both fit the first-level
// cache.
constexpr int64_t kDepth = 512;
// The part of x that the weights pass by, in floats: it fits the second-level cache.
constexpr int64_t kPanel = 1 << 16;
constexpr int64_t kPanelRows = kPanel / kDepth;
// Multiply-adds that take as long as waking a thread, and the least columns a thread is given
// before the rows are split too.
constexpr int64_t kMinWorkPerPart = 1 << 16;
constexpr int64_t kMinColsPerPart = 128;

const void* elementAt(const Weight& weight, int64_t row, int64_t col) {
  const auto offset = static_cast<size_t>(row * weight.cols + col) * sizeOf(weight.dtype);
  return static_cast<const char*>(weight.data) + offset;
}

}  // namespace

Matmul::Matmul(ThreadPool& pool, const Kernels& kernels) : pool_(pool), kernels_(kernels) {}

void Matmul::run(const float* x, int64_t rows, const Weight& weight, const Weight& bias,
                 float* out) {
  if (rows == 0) return;
  const int parts = pool_.numParts(rows * weight.rows * weight.cols, kMinWorkPerPart);
  const int rowParts = static_cast<int>(std::clamp<int64_t>(
      std::min(parts * kMinColsPerPart / weight.rows, rows / kPanelRows), 1, parts));
  const int colParts = parts / rowParts;
  pool_.run(rowParts * colParts, [&](int part, int) {
    const int r = part / colParts;
    const int c = part % colParts;
    const int64_t groups = (weight.rows + 3) / 4;  // whole tiles
    runPart({x, weight, bias, out}, {rows * r / rowParts, rows * (r + 1) / rowParts},
            {groups * c / colParts * 4, std::min(groups * (c + 1) / colParts * 4, weight.rows)});
  });
}

void Matmul::runPart(const Problem& problem, Range rows, Range cols) const {
  startWithBias(problem, rows, cols);
  const auto& [x, weight, bias, out] = problem;
  const auto dot = kernels_.dot[static_cast<int>(weight.dtype)];
  for (int64_t row = rows.begin; row < rows.end; row += kPanelRows) {
    const int64_t height = std::min(kPanelRows, rows.end - row);
    const int64_t length = kPanel / height / kDepth * kDepth;  // one row: as long as can be
    for (int64_t begin = 0; begin < weight.cols; begin += length) {
      const int64_t end = std::min(begin + length, weight.cols);
      for (int64_t col = cols.begin; col < cols.end; col += 4) {
        const int64_t width = std::min<int64_t>(4, cols.end - col);
        for (int64_t k = begin; k < end; k += kDepth) {
          const void* w[4];
          for (int64_t i = 0; i < width; ++i) w[i] = elementAt(weight, col + i, k);
          dot(x + row * weight.cols + k, weight.cols, height, w, width, std::min(kDepth, end - k),
              out + row * weight.rows + col, weight.rows);
        }
      }
    }
  }
}

void Matmul::startWithBias(const Problem& problem, Range rows, Range cols) const {
  const auto& [x, weight, bias, out] = problem;
  const int64_t count = cols.end - cols.begin;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    float* to = out + row * weight.rows + cols.begin;
    if (bias) {
      kernels_.widen[static_cast<int>(bias.dtype)](elementAt(bias, cols.begin, 0), count, to);
    } else {
      std::fill_n(to, count, 0.0f);
    }
  }
}

}  // namespace uniproc
