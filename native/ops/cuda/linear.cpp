#include "ops/cuda/linear.h"

#include "ops/cuda/kernels.h"
#include "ops/cuda/matmul_problem.h"

namespace uniproc::cuda {

Linear::Linear(cudaStream_t stream, MemoryAccount& memory, int32_t numMultiprocessors)
    : stream_(stream),
      handle_(makeCublasHandle()),
      numMultiprocessors_(numMultiprocessors),
      workspace_(memory),
      dequantized_(memory),
      algorithms_(handle_.get(), stream, memory) {
  workspace_.atLeast(kCublasWorkspaceBytes);
}

void Linear::run(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
                 DType outType) {
  if (numTokens == 0 ||
      linearStream(x, numTokens, weight, out, outType, numMultiprocessors_, stream_)) {
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
  multiply(x, numTokens, matrix, weight.bias, out, outType);
}

bool Linear::runSiluAndMul(const void* x, int32_t numTokens, const LinearWeight& weight,
                           void* out) {
  return linearSiluAndMulStream(x, numTokens, weight, out, numMultiprocessors_, stream_);
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
