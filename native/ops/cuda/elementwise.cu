// Row copies, norms and element-wise operations; conversion and filling of weights.
//
// Every kernel is bound by device memory, or by its launch at the few rows of a decode step.
// Threads move 16 bytes at a time if the width and the addresses allow it, else one element.
#include <numeric>
#include <string>
#include <type_traits>

#include "base/error.h"
#include "base/philox.h"
#include "ops/cuda/access.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/rms_norm.cuh"

namespace uniproc::cuda {
namespace {

constexpr int kThreads = 256;

// Threads of a block run along a row, blocks.x over the rows (blocks.y is limited to 65,535).
dim3 gridOf(int32_t rows, int64_t accessesPerRow) {
  return {static_cast<unsigned>(rows),
          static_cast<unsigned>(ceilDiv<int64_t>(accessesPerRow, kThreads))};
}

// Calls run(Word{}, rowWords) with the widest word that divides rows of this many bytes.
template <class Run>
void withWord(int64_t rowBytes, const void* from, const void* to, Run run) {
  const auto call = [&](auto word) { run(word, rowBytes / static_cast<int64_t>(sizeof word)); };
  if (rowBytes % kAccessBytes == 0 && isAligned(from) && isAligned(to)) {
    call(uint4{});
  } else {
    call(uint16_t{});
  }
}

// out [count, width] = x[index[i], :], in words of any type; skips rows with an index below 0.
// Grid: (count, width / 256). Reads and writes each row once.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gatherWords(const Word* x, const int32_t* index, int64_t width, Word* out) {
  waitForPrevious();
  const int64_t from = index[blockIdx.x];
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (from < 0 || i >= width) return;
  out[blockIdx.x * width + i] = x[from * width + i];
}

// out [count, width] = x [count, xWidth][:, index[c]], 0 where index[c] is -1. Grid: (count, width
// / 256). Reads and writes each element once; the reads of a row are scattered within it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gatherElements(const T* x, int64_t xWidth, const int32_t* index, int64_t width, T* out) {
  waitForPrevious();
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= width) return;
  const int32_t from = index[i];
  out[blockIdx.x * width + i] = from < 0 ? narrow<T>(0.0f) : x[blockIdx.x * xWidth + from];
}

// out [numTokens, width] = table[tokenIds[i] - firstToken, :] of a table [rows, width], in words of
// any type; zeros for tokens outside the table. Grid: (numTokens, width / 256). Reads and writes
// each row once.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    embedWords(const Word* table, int64_t rows, const int32_t* tokenIds, int32_t firstToken,
               int64_t width, Word* out) {
  // Later kernels read the batch before their own waits, so none may start before this one has seen
  // the end of prepareInputs.
  waitForPreviousAlone();
  letNextStart();
  const int64_t from = int64_t{tokenIds[blockIdx.x]} - firstToken;
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= width) return;
  out[blockIdx.x * width + i] = from >= 0 && from < rows ? table[from * width + i] : Word{};
}

// out [count, width] = parts [numParts, count, partWidth] joined along the columns. A thread moves
// N elements; N divides partWidth and width. Grid: (count, width / (256 N)). Reads and writes 4
// bytes per element once.
template <int N>
__global__ void __launch_bounds__(kThreads)
    joinPartColumns(const float* parts, int64_t partWidth, int64_t width, float* out) {
  waitForPrevious();
  const int64_t col = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (col >= width) return;
  const int64_t part = col / partWidth;
  const int64_t row = part * gridDim.x + blockIdx.x;
  storeVector<N>(out + blockIdx.x * width + col,
                 loadVector<N>(parts + row * partWidth + col % partWidth));
}

// residual [numTokens, size] += x (unless null), rounded to T; out = residual *
// rsqrt(mean(residual^2) + eps) times weight [size] and offset, as scaleRow. A thread keeps its
// kHeld accesses of the row in registers between sum and scaling; of one access it needs at most
// 32, so that 512 threads fit beside two streaming products (linear_stream.cu). Grid: one block per
// token. Reads and writes each row of x, residual and out once.
template <class T, int N, int kHeld>
__global__ void __launch_bounds__(kMaxNormThreads, kHeld* N <= 8 ? 2 : 1)
    rmsNormRows(const T* x, T* residual, int32_t size, const T* weight, float offset, float eps,
                T* out) {
  __shared__ float scratch[kMaxNormThreads / kWarpSize];
  waitForPrevious();
  const int64_t row = int64_t{blockIdx.x} * size;
  float values[kHeld][N];
  Vector<T, N> weights[kHeld];
  float sum = 0;
#pragma unroll
  for (int held = 0; held < kHeld; ++held) {
    const auto i = static_cast<int32_t>((held * blockDim.x + threadIdx.x) * N);
    if (i >= size) break;
    loadWidened<N>(residual + row + i, values[held]);
    weights[held] = loadVector<N>(weight + i);
    if (x) {
      float added[N];
      loadWidened<N>(x + row + i, added);
      addRounded<T>(values[held], added);
      storeNarrowed<N>(residual + row + i, values[held]);
    }
    addSquares(sum, values[held]);
  }
  const float factor = rmsFactor(blockSum(sum, scratch), size, eps);
  scaleRow(values, weights, factor, static_cast<int32_t>(threadIdx.x),
           static_cast<int32_t>(blockDim.x), size, out + row, offset);
}

// out [numTokens, size] = activated(gate, up). Grid: (numTokens, size / (256 N)). Reads gate and up
// and writes out once.
template <class T, int N, Activation kActivation>
__global__ void __launch_bounds__(kThreads)
    activateAndMulRows(const T* gates, int64_t gateStride, const T* ups, int64_t upStride,
                       int64_t size, T* out) {
  waitForPrevious();
  const int64_t i = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (i >= size) return;
  float gate[N];
  float up[N];
  loadWidened<N>(gates + blockIdx.x * gateStride + i, gate);
  loadWidened<N>(ups + blockIdx.x * upStride + i, up);
#pragma unroll
  for (int n = 0; n < N; ++n) up[n] = activated<T>(kActivation, gate[n], up[n]);
  storeNarrowed<N>(out + blockIdx.x * size + i, up);
}

// out [rows, width] += bias [width]. Grid: (rows, width / (256 N)). Reads and writes out once.
template <class T, class B, int N>
__global__ void __launch_bounds__(kThreads) addBiasRows(T* out, int64_t width, const B* bias) {
  waitForPrevious();
  const int64_t i = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (i >= width) return;
  float values[N];
  float biases[N];
  loadWidened<N>(out + blockIdx.x * width + i, values);
  loadWidened<N>(bias + i, biases);
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] += biases[n];
  storeNarrowed<N>(out + blockIdx.x * width + i, values);
}

// out [count] = in. Grid: one thread per N elements. Reads in and writes out once.
template <class To, class From, int N>
__global__ void __launch_bounds__(kThreads)
    convertElements(To* out, const From* in, int64_t count) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= count) return;
  float values[N];
  loadWidened<N>(in + i, values);
  storeNarrowed<N>(out + i, values);
}

// out [count] = mean + std * normal numbers of philox.h. Grid: one thread per group of 4. Bound by
// arithmetic.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fillNormal(T* out, int64_t count, float mean, float std, uint64_t seed) {
  const int64_t group = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (group * 4 >= count) return;
  const PhiloxBlock block = fillWords(seed, static_cast<uint64_t>(group));
  float normals[4];
  normalPair(block.words[0], block.words[1], normals);
  normalPair(block.words[2], block.words[3], normals + 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (group * 4 + i < count) out[group * 4 + i] = narrow<T>(mean + std * normals[i]);
  }
}

template <class T, int N, int kHeld>
void launchRmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight,
                   float eps, void* out, cudaStream_t stream) {
  const auto size = static_cast<int32_t>(weight.rows);
  const int threads = normThreads(ceilDiv(size, N), kHeld);
  if constexpr (kHeld * N < 16) {
    if (threads > kMaxNormThreads) {
      return launchRmsNorm<T, N, 2 * kHeld>(x, residual, numTokens, weight, eps, out, stream);
    }
  }
  if (threads > kMaxNormThreads) {
    throw Error("NOT_SUPPORTED",
                "a layer of width " + std::to_string(size) +
                    " is too wide for the CUDA backend, which normalizes at most " +
                    std::to_string(kMaxNormThreads * kHeld * N));
  }
  launch(rmsNormRows<T, N, kHeld>, static_cast<unsigned>(numTokens), static_cast<unsigned>(threads),
         0, stream, static_cast<const T*>(x), static_cast<T*>(residual), size,
         static_cast<const T*>(weight.data), weight.offset, eps, static_cast<T*>(out));
}

}  // namespace

void embed(const int32_t* tokenIds, int32_t numTokens, const Weight& table, int32_t firstToken,
           void* out, DType type, cudaStream_t stream) {
  if (numTokens == 0) return;
  const int64_t rowBytes = table.cols * static_cast<int64_t>(sizeOf(type));
  withWord(rowBytes, table.data, out, [&](auto word, int64_t width) {
    using Word = decltype(word);
    launch(embedWords<Word>, gridOf(numTokens, width), kThreads, 0, stream,
           static_cast<const Word*>(table.data), table.rows, tokenIds, firstToken, width,
           static_cast<Word*>(out));
  });
}

void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width, void* out,
                DType type, cudaStream_t stream) {
  if (count == 0) return;
  const int64_t rowBytes = width * static_cast<int64_t>(sizeOf(type));
  withWord(rowBytes, x, out, [&](auto word, int64_t rowWords) {
    using Word = decltype(word);
    launch(gatherWords<Word>, gridOf(count, rowWords), kThreads, 0, stream,
           static_cast<const Word*>(x), index, rowWords, static_cast<Word*>(out));
  });
}

void gatherColumns(const void* x, int32_t xWidth, const int32_t* index, int32_t count,
                   int32_t width, void* out, DType type, cudaStream_t stream) {
  if (count == 0) return;
  withType(type, [&]<class T>(T) {
    launch(gatherElements<T>, gridOf(count, width), kThreads, 0, stream, static_cast<const T*>(x),
           int64_t{xWidth}, index, int64_t{width}, static_cast<T*>(out));
  });
}

void joinColumns(const float* parts, int32_t count, int32_t partWidth, int32_t width, float* out,
                 cudaStream_t stream) {
  if (count == 0) return;
  const int64_t common = std::gcd(partWidth, width);
  withAccess<float>(common, {parts, out}, [&](auto access) {
    constexpr int N = access();
    launch(joinPartColumns<N>, gridOf(count, ceilDiv(width, N)), kThreads, 0, stream, parts,
           int64_t{partWidth}, int64_t{width}, out);
  });
}

void rmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight, float eps,
             void* out, DType type, cudaStream_t stream) {
  if (numTokens == 0) return;
  const auto size = static_cast<int32_t>(weight.rows);
  withType(type, [&](auto element) {
    using T = decltype(element);
    withAccess<T>(size, {x, residual, weight.data, out}, [&](auto access) {
      launchRmsNorm<T, access(), 1>(x, residual, numTokens, weight, eps, out, stream);
    });
  });
}

void activateAndMul(const ForwardOps::GateAndUp& in, int32_t numTokens, int32_t size,
                    Activation activation, void* out, DType type, cudaStream_t stream) {
  if (numTokens == 0) return;
  const int64_t width = std::gcd(int64_t{size}, std::gcd(in.gateStride, in.upStride));
  withType(type, [&]<class T>(T) {
    withAccess<T>(width, {in.gate, in.up, out}, [&](auto access) {
      constexpr int N = access();
      const auto run = [&](auto kernel) {
        launch(kernel, gridOf(numTokens, ceilDiv(size, N)), kThreads, 0, stream,
               static_cast<const T*>(in.gate), in.gateStride, static_cast<const T*>(in.up),
               in.upStride, int64_t{size}, static_cast<T*>(out));
      };
      switch (activation) {
        case Activation::kSilu:
          return run(activateAndMulRows<T, N, Activation::kSilu>);
        case Activation::kGelu:
          return run(activateAndMulRows<T, N, Activation::kGelu>);
        case Activation::kGeluTanh:
          return run(activateAndMulRows<T, N, Activation::kGeluTanh>);
        case Activation::kClampedSwiglu:
          return run(activateAndMulRows<T, N, Activation::kClampedSwiglu>);
      }
    });
  });
}

void addBias(void* out, int32_t rows, int32_t width, const Weight& bias, DType type,
             cudaStream_t stream) {
  if (rows == 0) return;
  withType(type, [&](auto element) {
    withType(bias.dtype, [&](auto biasElement) {
      using T = decltype(element);
      using B = decltype(biasElement);
      withAccess<T>(width, {out, bias.data}, [&](auto access) {
        constexpr int N = access();
        launch(addBiasRows<T, B, N>, gridOf(rows, ceilDiv(width, N)), kThreads, 0, stream,
               static_cast<T*>(out), int64_t{width}, static_cast<const B*>(bias.data));
      });
    });
  });
}

void convert(void* out, DType outType, const void* in, DType inType, int64_t count,
             cudaStream_t stream) {
  if (count == 0) return;
  withType(outType, [&](auto outElement) {
    withType(inType, [&](auto inElement) {
      using To = decltype(outElement);
      using From = decltype(inElement);
      // As many elements of the narrower type as 16 bytes hold.
      using Narrower = std::conditional_t<sizeof(To) <= sizeof(From), To, From>;
      withAccess<Narrower>(count, {out, in}, [&](auto access) {
        constexpr int N = access();
        const auto blocks =
            static_cast<unsigned>(ceilDiv<int64_t>(ceilDiv<int64_t>(count, N), kThreads));
        convertElements<To, From, N><<<blocks, kThreads, 0, stream>>>(
            static_cast<To*>(out), static_cast<const From*>(in), count);
      });
    });
  });
}

void fillRandom(void* out, StorageType type, int64_t count, float mean, float std, uint64_t seed,
                cudaStream_t stream) {
  if (isPacked(type)) count = bytesOf(type, count);
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>(ceilDiv<int64_t>(count, 4 * kThreads));
  withStorageType(type, [&](auto element) {
    using T = decltype(element);
    fillNormal<T><<<blocks, kThreads, 0, stream>>>(static_cast<T*>(out), count, mean, std, seed);
  });
}

}  // namespace uniproc::cuda
