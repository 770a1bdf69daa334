#include "ops/cuda/matmul_algorithms.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iterator>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "ops/cuda/cublas.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/matmul_timing.h"

namespace uniproc::cuda {
namespace {

// Bytes of weights that a product is timed over, several times what the L2 cache holds.
constexpr int64_t kColdBytes = 200'000'000;
// On Hopper products of fewer tokens have kernels of their own, and they gained nothing in
// cuBLASLt: measured on an H200.
constexpr int32_t kLeastTimed = 17;

// In hexadecimal. cuBLASLt allows to store an algorithm for the same version of the library.
std::string textOf(const cublasLtMatmulAlgo_t& algorithm) {
  std::string text;
  for (const uint64_t word : algorithm.data) {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(word));
    text += digits;
  }
  return text;
}

std::optional<cublasLtMatmulAlgo_t> algorithmOf(std::string_view text) {
  cublasLtMatmulAlgo_t algorithm{};
  if (text.size() != 16 * std::size(algorithm.data)) return std::nullopt;
  for (uint64_t& word : algorithm.data) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + 16, word, 16);
    if (error != std::errc() || end != text.data() + 16) return std::nullopt;
    text.remove_prefix(16);
  }
  return algorithm;
}

}  // namespace

MatmulShape MatmulAlgorithms::shapeOf(const Product& product, int32_t numTokens) {
  return {product.rows, product.cols, numTokens, product.type, product.outType, product.bias};
}

const cublasLtMatmulAlgo_t& MatmulAlgorithms::of(const MatmulShape& shape, const void* weight,
                                                 const void* bias) {
  if (!timed_) remember(shape, weight, bias);
  MatmulShape bucket = shape;
  bucket.numTokens = bucketOf(shape.numTokens);
  if (const auto found = algorithms_.find(bucket); found != algorithms_.end()) return found->second;

  const auto algorithms = MatmulProblem(bucket, bias).algorithms(handle_, 1);
  if (algorithms.empty()) {
    throw Error("DEVICE_FAILED", "cuBLASLt has no algorithm for the product of [" +
                                     std::to_string(bucket.numTokens) + ", " +
                                     std::to_string(shape.cols) + "] with [" +
                                     std::to_string(shape.rows) + ", " +
                                     std::to_string(shape.cols) + "] transposed");
  }
  return algorithms_.emplace(bucket, algorithms[0]).first->second;
}

const cublasLtMatmulAlgo_t* MatmulAlgorithms::ofFloat8(const MatmulShape& shape,
                                                       const MatmulScales& scales) {
  auto found = float8Algorithms_.find(shape);
  if (found == float8Algorithms_.end()) {
    const auto algorithms = MatmulProblem(shape, nullptr, scales).algorithms(handle_, 1);
    found = float8Algorithms_
                .emplace(shape, algorithms.empty() ? std::nullopt : std::optional(algorithms[0]))
                .first;
  }
  return found->second ? &*found->second : nullptr;
}

void MatmulAlgorithms::remember(const MatmulShape& shape, const void* weight, const void* bias) {
  const Product product = {shape.rows, shape.cols, shape.type, shape.outType, shape.bias};
  Operands& operands = products_.try_emplace(product, Operands{{}, bias, 0}).first->second;
  operands.numTokens = std::max(operands.numTokens, shape.numTokens);
  const int64_t bytes = shape.rows * shape.cols * static_cast<int64_t>(sizeOf(shape.type));
  auto& weights = operands.weights;
  if (static_cast<int64_t>(weights.size()) * bytes >= kColdBytes) return;
  if (std::ranges::find(weights, weight) == weights.end()) weights.push_back(weight);
}

std::string MatmulAlgorithms::chooseFastest(std::string_view known, void* workspace) {
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  Table table = tableOf(known);
  if (timed_) table.insert(timed_->begin(), timed_->end());
  for (const auto& [product, operands] : products_) {
    timeProduct(product, operands, workspace, table);
  }
  // The table's other products were not compared with the heuristic's first here.
  for (const auto& [shape, algorithm] : table) {
    const Product product = {shape.rows, shape.cols, shape.type, shape.outType, shape.bias};
    if (products_.contains(product)) algorithms_.insert_or_assign(shape, algorithm);
  }
  products_.clear();
  timed_ = std::move(table);
  return textOf(*timed_);
}

void MatmulAlgorithms::timeProduct(const Product& product, const Operands& operands,
                                   void* workspace, Table& table) {
  std::vector<MatmulShape> missing;
  const int32_t most = bucketOf(operands.numTokens);
  for (int32_t size = bucketOf(kLeastTimed); size <= most; size = bucketOf(size + 1)) {
    const MatmulShape shape = shapeOf(product, size);
    const auto found = table.find(shape);
    // A stored algorithm may be one that cuBLASLt no longer takes.
    if (found != table.end() &&
        MatmulProblem(shape, operands.bias).accepts(handle_, found->second)) {
      continue;
    }
    missing.push_back(shape);
  }
  if (missing.empty()) return;
  try {
    MatmulTiming timing(handle_, stream_, memory_, missing.back(), operands.weights, operands.bias,
                        workspace);
    for (const MatmulShape& shape : missing) table.insert_or_assign(shape, timing.fastest(shape));
  } catch (const Error& error) {
    // The heuristic's choices stay.
    if (error.code() != "OUT_OF_MEMORY") throw;
  }
}

std::string MatmulAlgorithms::header() const {
  int device = 0;
  cudaDeviceProp properties;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return "1, cuBLASLt " + std::to_string(cublasLtGetVersion()) + ", " + properties.name + ", " +
         std::to_string(properties.multiProcessorCount) + " multiprocessors";
}

// A line for the header, then one for each shape: rows, cols, tokens, type, type of the output,
// bias, algorithm.
std::string MatmulAlgorithms::textOf(const Table& table) const {
  std::ostringstream text;
  text << header() << '\n';
  for (const auto& [shape, algorithm] : table) {
    text << shape.rows << ' ' << shape.cols << ' ' << shape.numTokens << ' '
         << static_cast<int>(shape.type) << ' ' << static_cast<int>(shape.outType) << ' '
         << shape.bias << ' ' << cuda::textOf(algorithm) << '\n';
  }
  return text.str();
}

MatmulAlgorithms::Table MatmulAlgorithms::tableOf(std::string_view text) const {
  Table table;
  std::istringstream lines{std::string(text)};
  std::string line;
  if (!std::getline(lines, line) || line != header()) return {};
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    MatmulShape shape{};
    int type = 0;
    int outType = 0;
    std::string digits;
    fields >> shape.rows >> shape.cols >> shape.numTokens >> type >> outType >> shape.bias >>
        digits;
    const auto algorithm = algorithmOf(digits);
    if (!fields || !algorithm) return {};
    shape.type = static_cast<DType>(type);
    shape.outType = static_cast<DType>(outType);
    table.emplace(shape, *algorithm);
  }
  return table;
}

}  // namespace uniproc::cuda
