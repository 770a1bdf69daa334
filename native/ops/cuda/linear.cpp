#include "ops/cuda/linear.h"

#include "ops/cuda/alignment.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/matmul_problem.h"

namespace uniproc::cuda {
namespace {

// Up to here a product that converts 4- and 8-bit weights in registers takes less than dequantizing
// them and cuBLASLt.
constexpr int32_t kMostConverted = 384;
// Fewer tokens are not quantized: linear_stream.cu is as fast for them.
constexpr int32_t kLeastQuantized = 17;
constexpr int64_t kScaleBlock = 128;  // of cuBLASLt

// What shares a scale in cuBLASLt's products of a float8 weight; kNone if it has no such product.
Float8Operands operandsOf(const LinearWeight& weight) {
  const WeightFormat& format = weight.format;
  if (!format.roundsInput || format.type != StorageType::kFloat8E4M3 ||
      weight.dtype == DType::kFloat32 || weight.rows % 16 != 0 || weight.cols % 16 != 0 ||
      !isAligned(weight.data) || !isAligned(weight.scales)) {
    return Float8Operands::kNone;
  }
  if (format.scaleRows == 1 && format.scaleCols >= weight.cols) return Float8Operands::kRows;
  // cuBLASLt has the scales of a block's row padded to a multiple of four.
  const bool blocks = format.scaleRows == kScaleBlock && format.scaleCols == kScaleBlock &&
                      weight.cols % (4 * kScaleBlock) == 0;
  return blocks ? Float8Operands::kBlocks : Float8Operands::kNone;
}

}  // namespace

Linear::Linear(cudaStream_t stream, MemoryAccount& memory, int32_t numMultiprocessors)
    : stream_(stream),
      handle_(makeCublasHandle()),
      numMultiprocessors_(numMultiprocessors),
      workspace_(memory),
      dequantized_(memory),
      sorted_(memory),
      quantized_(memory),
      algorithms_(handle_.get(), stream, memory) {
  workspace_.atLeast(kCublasWorkspaceBytes);
}

void Linear::run(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                 DType outType) {
  if (numTokens == 0) return;
  if (weight.order)
    return run(sortColumns(x, numTokens, weight), numTokens, weight.sorted(), out, outType);
  if (runQuantized(x, numTokens, weight, out, outType) ||
      linearStreamFloat8(x, numTokens, weight, out, outType, numMultiprocessors_, stream_) ||
      linearStream(x, numTokens, weight, out, outType, numMultiprocessors_, stream_) ||
      linearQuantizedStream(x, numTokens, weight, out, outType, numMultiprocessors_, stream_) ||
      (numTokens <= kMostConverted &&
       linearQuantized(x, numTokens, weight, out, outType, numMultiprocessors_, stream_))) {
    return;
  }
  Weight matrix = weight.matrix();
  if (weight.format.hasScales()) {
    // linearFewTokens cannot run here: it reads weights before the previous kernel has ended.
    void* dequantized = dequantized_.atLeast(matrix.rows * matrix.cols * sizeOf(matrix.dtype));
    dequantize(weight, dequantized, stream_);
    matrix.data = dequantized;
  } else if (linearFewTokens(x, numTokens, matrix, weight.bias, out, outType, numMultiprocessors_,
                             stream_)) {
    return;
  }
  if (linearNarrow(x, numTokens, matrix, weight.bias, out, outType, stream_)) return;
  multiply(x, numTokens, matrix, weight.bias, out, outType);
}

bool Linear::runSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight,
                           void* out) {
  if (weight.order) return false;
  if (numTokens >= kLeastQuantized && operandsOf(weight) != Float8Operands::kNone) return false;
  return linearSiluAndMulStreamFloat8(x, numTokens, weight, out, numMultiprocessors_, stream_) ||
         linearSiluAndMulStream(x, numTokens, weight, out, numMultiprocessors_, stream_) ||
         linearSiluAndMulQuantizedStream(x, numTokens, weight, out, numMultiprocessors_, stream_);
}

const void* Linear::sortColumns(const void* x, int32_t numTokens, const LinearWeight& weight) {
  void* sorted =
      sorted_.atLeast(static_cast<size_t>(numTokens * weight.cols) * sizeOf(weight.dtype));
  gatherColumns(x, static_cast<int32_t>(weight.widthOfInput()), weight.order, numTokens,
                static_cast<int32_t>(weight.cols), sorted, weight.dtype, stream_);
  return sorted;
}

bool Linear::runQuantized(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                          DType outType) {
  const Float8Operands operands = operandsOf(weight);
  if (numTokens < kLeastQuantized || operands == Float8Operands::kNone) return false;
  const bool byGroup = operands == Float8Operands::kBlocks;
  // cuBLASLt has no products of other numbers of tokens with a scale for each block.
  const int32_t count = byGroup ? numTokens / 4 * 4 : numTokens;
  const MatmulShape shape = {weight.rows, weight.cols, count,   weight.dtype,
                             outType,     false,       operands};
  const auto* weightScales = static_cast<const float*>(weight.scales);
  // The choice depends on the scales' kind alone, not on their addresses.
  const cublasLtMatmulAlgo_t* algorithm = algorithms_.ofFloat8(shape, {weightScales, weightScales});
  if (!algorithm) return false;
  const auto cols = static_cast<int32_t>(weight.cols);
  const size_t xBytes = (static_cast<size_t>(count * weight.cols) + 255) / 256 * 256;
  const auto scaleBytes = static_cast<size_t>(count) * sizeof(float) *
                          static_cast<size_t>(byGroup ? weight.cols / kScaleBlock : 1);
  void* quantized = quantized_.atLeast(xBytes + scaleBytes);
  auto* scales = reinterpret_cast<float*>(static_cast<char*>(quantized) + xBytes);
  quantizeTokens(x, count, cols, byGroup, weight.dtype, quantized, scales, stream_);
  check(MatmulProblem(shape, nullptr, {weightScales, scales})
            .run(handle_.get(), quantized, weight.data, out, *algorithm,
                 workspace_.atLeast(kCublasWorkspaceBytes), stream_),
        "cublasLtMatmul of float8");
  if (weight.bias) {
    addBias(out, count, static_cast<int32_t>(weight.rows), weight.bias, outType, stream_);
  }
  if (count < numTokens) {
    run(static_cast<const char*>(x) +
            count * weight.cols * static_cast<int64_t>(sizeOf(weight.dtype)),
        numTokens - count, weight,
        static_cast<char*>(out) + count * weight.rows * static_cast<int64_t>(sizeOf(outType)),
        outType);
  }
  return true;
}

void Linear::multiply(const void* x, int32_t numTokens, const Weight& weight, const Weight& bias,
                      void* out, DType outType) {
  // cuBLASLt can only fuse a bias of the output's type.
  const bool fused = bias && outType == bias.dtype;
  const void* fusedBias = fused ? bias.data : nullptr;
  const MatmulShape shape = {weight.rows, weight.cols, numTokens, weight.dtype, outType, fused};
  const cublasLtMatmulAlgo_t& algorithm = algorithms_.of(shape, weight.data, fusedBias);
  check(MatmulProblem(shape, fusedBias)
            .run(handle_.get(), x, weight.data, out, algorithm,
                 workspace_.atLeast(kCublasWorkspaceBytes), stream_),
        "cublasLtMatmul");
  if (bias && !fused) {
    addBias(out, numTokens, static_cast<int32_t>(weight.rows), bias, outType, stream_);
  }
}

std::string Linear::chooseFastest(std::string_view known) {
  return algorithms_.chooseFastest(known, workspace_.atLeast(kCublasWorkspaceBytes));
}

}  // namespace uniproc::cuda
