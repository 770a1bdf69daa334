#include "ceilings/products.h"

#include <algorithm>
#include <limits>
#include <string>

#include "ceilings/kernels.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::ceilings {
namespace {

// The size that cuBLAS itself uses on Hopper, and the engine.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int kCandidates = 16;
constexpr Effort kCandidateEffort = {3, 0.002};
constexpr Effort kEffort = {7, 0.01};
// A candidate is timed over more weights than any cache holds between runs.
constexpr size_t kColdBytes = 400'000'000;
constexpr float kWeightStd = 0.02f;

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error("DEVICE_FAILED", std::string(call) + " failed: " + cublasLtGetStatusString(status) +
                                   " (" + cublasLtGetStatusName(status) + ")");
}

size_t bytesOf(Shape shape) { return 2 * static_cast<size_t>(shape.rows * shape.cols); }

// Bytes of the largest activation; `side` is the number of elements that a product reads or writes
// per row.
size_t largest(int64_t Shape::* side, const std::vector<Shape>& layer, Shape head,
               const std::vector<Step>& steps) {
  int64_t values = 0;
  for (const Step& step : steps) {
    for (const Shape& shape : layer) values = std::max(values, step.numTokens * shape.*side);
    values = std::max(values, step.numSampled * head.*side);
  }
  return 2 * static_cast<size_t>(values);
}

cublasLtMatrixLayoutOpaque_t columnMajor(int64_t rows, int64_t cols) {
  cublasLtMatrixLayoutOpaque_t layout;
  check(cublasLtMatrixLayoutInit(&layout, CUDA_R_16BF, static_cast<uint64_t>(rows),
                                 static_cast<uint64_t>(cols), rows),
        "cublasLtMatrixLayoutInit");
  return layout;
}

}  // namespace

Products::Products(cudaStream_t stream, int numLayers, const std::vector<Shape>& layer, Shape head,
                   const std::vector<Step>& steps)
    : stream_(stream),
      numLayers_(numLayers),
      head_(makeWeight(head, 1)),
      x_(largest(&Shape::cols, layer, head, steps)),
      out_(largest(&Shape::rows, layer, head, steps)),
      workspace_(kWorkspaceBytes) {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle), "cublasLtCreate");
  handle_.reset(handle);
  for (const Shape& shape : layer) layer_.push_back(makeWeight(shape, numLayers));
  fillRandom(x_.data(), x_.bytes() / 2, 1.0f, seed_++, stream_);
}

Products::Weight Products::makeWeight(Shape shape, int copies) {
  Weight weight{shape, {}};
  for (int i = 0; i < copies; ++i) {
    const DeviceMemory& copy = weight.copies.emplace_back(bytesOf(shape));
    fillRandom(copy.data(), copy.bytes() / 2, kWeightStd, seed_++, stream_);
  }
  return weight;
}

double Products::seconds(Step step) {
  std::vector<const Product*> layer;
  for (const Weight& weight : layer_) layer.push_back(&product(weight, step.numTokens));
  const Product& head = product(head_, step.numSampled);
  return graphSecondsOf(stream_, kEffort, [&] {
    for (int i = 0; i < numLayers_; ++i) {
      for (const Product* each : layer) run(*each, static_cast<size_t>(i));
    }
    run(head, 0);
  });
}

// cuBLASLt is column-major and sees a row-major matrix as its transpose. So it computes out^T
// [rows, numRows] = W x^T, with W passed as its transpose.
const Products::Product& Products::product(const Weight& weight, int32_t numRows) {
  const auto [found, isNew] = products_.try_emplace({&weight, numRows});
  Product& product = found->second;
  if (!isNew) return product;
  product.weight = &weight;
  check(cublasLtMatmulDescInit(&product.description, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cublasLtMatmulDescInit");
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check(cublasLtMatmulDescSetAttribute(&product.description, CUBLASLT_MATMUL_DESC_TRANSA,
                                       &transposed, sizeof transposed),
        "cublasLtMatmulDescSetAttribute");
  product.weightLayout = columnMajor(weight.shape.cols, weight.shape.rows);
  product.xLayout = columnMajor(weight.shape.cols, numRows);
  product.outLayout = columnMajor(weight.shape.rows, numRows);
  chooseFastest(product);
  return product;
}

std::vector<cublasLtMatmulHeuristicResult_t> Products::candidates(const Product& product) const {
  cublasLtMatmulPreferenceOpaque_t preference;
  check(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit");
  check(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kWorkspaceBytes, sizeof kWorkspaceBytes),
        "cublasLtMatmulPreferenceSetAttribute");
  std::vector<cublasLtMatmulHeuristicResult_t> found(kCandidates);
  int numFound = 0;
  // The function takes non-const handles but does not write them.
  Product described = product;
  check(
      cublasLtMatmulAlgoGetHeuristic(handle_.get(), &described.description, &described.weightLayout,
                                     &described.xLayout, &described.outLayout, &described.outLayout,
                                     &preference, kCandidates, found.data(), &numFound),
      "cublasLtMatmulAlgoGetHeuristic");
  found.resize(static_cast<size_t>(numFound));
  return found;
}

void Products::chooseFastest(Product& product) const {
  const Weight& weight = *product.weight;
  const size_t enough = (kColdBytes + bytesOf(weight.shape) - 1) / bytesOf(weight.shape);
  const size_t copies = std::min(enough, weight.copies.size());
  double best = std::numeric_limits<double>::infinity();
  cublasLtMatmulAlgo_t fastest{};
  for (const cublasLtMatmulHeuristicResult_t& candidate : candidates(product)) {
    product.algorithm = candidate.algo;
    // Some algorithms that the heuristic returns do not run.
    if (candidate.state != CUBLAS_STATUS_SUCCESS) continue;
    if (tryRun(product, 0) != CUBLAS_STATUS_SUCCESS) continue;
    const double seconds = graphSecondsOf(stream_, kCandidateEffort, [&] {
      for (size_t copy = 0; copy < copies; ++copy) run(product, copy);
    });
    if (seconds < best) {
      best = seconds;
      fastest = candidate.algo;
    }
  }
  if (best == std::numeric_limits<double>::infinity()) {
    throw Error("DEVICE_FAILED", "cuBLASLt has no algorithm for the product with a weight of [" +
                                     std::to_string(weight.shape.rows) + ", " +
                                     std::to_string(weight.shape.cols) + "]");
  }
  product.algorithm = fastest;
}

cublasStatus_t Products::tryRun(const Product& product, size_t copy) const {
  const float alpha = 1.0f;
  const float beta = 0.0f;
  Product described = product;
  return cublasLtMatmul(handle_.get(), &described.description, &alpha,
                        product.weight->copies[copy].data(), &described.weightLayout, x_.data(),
                        &described.xLayout, &beta, out_.data(), &described.outLayout, out_.data(),
                        &described.outLayout, &product.algorithm, workspace_.data(),
                        kWorkspaceBytes, stream_);
}

void Products::run(const Product& product, size_t copy) const {
  check(tryRun(product, copy), "cublasLtMatmul");
}

}  // namespace uniproc::ceilings
