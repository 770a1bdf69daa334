#include "ops/cpu/cpu_ops.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/float_types.h"
#include "base/philox.h"
#include "base/thread_pool.h"
#include "comm/tcp_communicator.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/block_tiles.h"
#include "ops/cpu/experts.h"
#include "ops/cpu/host.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/memory.h"
#include "ops/cpu/parallel_rows.h"
#include "ops/cpu/routing.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/sampler.h"

namespace uniproc {
namespace {

int indexOf(DType dtype) { return static_cast<int>(dtype); }

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

class CpuOps final : public Ops {
 public:
  CpuOps(int numThreads, std::string_view isa)
      : kernels_(chooseKernels(isa)),
        pool_(numThreads > 0 ? numThreads : availableCores()),
        linear_(pool_, kernels_),
        experts_(pool_, linear_),
        attention_(pool_, kernels_),
        sampler_(pool_, kernels_) {}

  // The device -----------------------------------------------------------------------------

  std::string name() const override { return "cpu"; }
  std::string capability() const override { return kernels_.name; }
  int numThreads() const override { return pool_.numThreads(); }
  DeviceMemory memory() const override { return memory_.usage(); }
  void resetPeakMemory() override { memory_.resetPeak(); }
  bool preparesOnFirstUse() const override { return false; }
  void* allocate(size_t bytes, const char* what) override { return memory_.allocate(bytes, what); }
  void* allocateSparse(size_t bytes, const char* what) override {
    return memory_.allocate(bytes, what, MemoryAccount::Writes::kSparse);
  }
  void release(void* memory, size_t bytes) noexcept override { memory_.release(memory, bytes); }
  void reserve(void* memory, size_t bytes) override { MemoryAccount::reserve(memory, bytes); }
  void* allocateHost(size_t bytes, const char* what) override { return allocate(bytes, what); }
  void releaseHost(void* memory, size_t bytes) noexcept override { release(memory, bytes); }
  void pin(void*, size_t) override {}
  void unpin(void*) noexcept override {}
  void copyToDevice(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void copyToHost(void* host, const void* device, size_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  void copyAllToDevice(std::span<const HostToDevice> copies) override {
    for (const HostToDevice& copy : copies) copyToDevice(copy.device, copy.host, copy.bytes);
  }
  void synchronize() override {}
  void beginStep() override {
    stepBegan_ = Clock::now();
    idleBeforeStep_ = stepEnded_ ? Milliseconds(stepBegan_ - *stepEnded_) : Milliseconds(0);
  }
  void endStep(Done done) override {
    stepEnded_ = Clock::now();
    ++stepTimes_.numSteps;
    stepTimes_.busyMs += Milliseconds(*stepEnded_ - stepBegan_).count();
    stepTimes_.idleMs += idleBeforeStep_.count();
    done(nullptr);
  }
  StepTimes stepTimes() const override { return stepTimes_; }
  void startProfiler() override { throw Error("NOT_SUPPORTED", "the CPU has no profiler"); }
  void stopProfiler() override { startProfiler(); }
  DType activationType(DType) const override { return DType::kFloat32; }
  std::unique_ptr<Communicator> makeCommunicator(const CommunicatorConfig& config) override {
    return std::make_unique<TcpCommunicator>(config);
  }

  void upload(void* out, StorageType outType, const HostMatrix& host) override {
    pool_.parallelFor(host.count(), kMinElementsPerPart, [&](int64_t begin, int64_t end, int) {
      std::vector<std::byte> piece;  // staging for host elements to convert
      host.forEachRun(begin, end, [&](int64_t first, int64_t from, int64_t count) {
        const auto outSize = static_cast<int64_t>(sizeOf(outType));
        std::byte* to = static_cast<std::byte*>(out) + first * outSize;
        if (outType == host.type) return host.bytes.read(from, count * outSize, to);
        const auto hostSize = static_cast<int64_t>(sizeOf(host.type));
        piece.resize(static_cast<size_t>(kMinElementsPerPart * hostSize));
        for (int64_t i = 0; i < count; i += kMinElementsPerPart) {
          const int64_t size = std::min(kMinElementsPerPart, count - i);
          host.bytes.read(from + i * hostSize, size * hostSize, piece.data());
          convert(to + i * outSize, dtypeOf(outType), piece.data(), dtypeOf(host.type), size);
        }
      });
    });
  }

  void download(void* host, const void* in, int64_t bytes) override {
    pool_.parallelFor(bytes, kMinElementsPerPart, [&](int64_t begin, int64_t end, int) {
      std::memcpy(static_cast<char*>(host) + begin, static_cast<const char*>(in) + begin,
                  static_cast<size_t>(end - begin));
    });
  }

  void fillRandom(void* out, StorageType type, int64_t count, float mean, float std,
                  uint64_t seed) override {
    if (isPacked(type) || isBlocks(type)) count = bytesOf(type, count);
    const int64_t groups = (count + 3) / 4;
    pool_.parallelFor(groups, kMinElementsPerPart / 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t group = begin; group < end; ++group) {
        const PhiloxBlock block = fillWords(seed, static_cast<uint64_t>(group));
        float values[4];
        normalPair(block.words[0], block.words[1], values);
        normalPair(block.words[2], block.words[3], values + 2);
        for (float& value : values) value = mean + std * value;
        char* to = static_cast<char*>(out) + group * 4 * static_cast<int64_t>(sizeOf(type));
        const int64_t size = std::min<int64_t>(4, count - group * 4);
        if (isFloat(type)) {
          kernels_.narrow[indexOf(dtypeOf(type))](values, size, to);
        } else if (type == StorageType::kFloat8E4M3) {
          std::transform(values, values + size, reinterpret_cast<Float8E4M3*>(to),
                         narrow<Float8E4M3>);
        } else {
          const bool isSigned = type == StorageType::kInt8;
          const float lowest = isSigned ? -127.0f : 0.0f;
          const float highest = isSigned ? 127.0f : 255.0f;
          std::transform(values, values + size, to, [&](float value) {
            return static_cast<char>(
                static_cast<int>(std::clamp(std::rint(value), lowest, highest)));
          });
        }
      }
    });
  }

  // The forward pass -----------------------------------------------------------------------

  void prepareInputs(const HostToDevice& inputs, const RequestTable& requests,
                     const int32_t* blockUpdates, int32_t numBlockUpdates, int32_t blockSize,
                     const Batch& batch) override {
    if (inputs.bytes > 0) copyAllToDevice({&inputs, 1});
    for (int32_t i = 0; i < numBlockUpdates; ++i) {
      const int32_t* update = blockUpdates + 3 * i;
      requests.blockTable[int64_t{update[0]} * requests.maxBlocksPerSeq + update[1]] = update[2];
    }
    for (int32_t row = 0; row < batch.numRows; ++row) {
      const int64_t slot = batch.slots[row];
      const int32_t* tokenIds = requests.tokenIds + slot * requests.maxModelLen;
      int32_t position = batch.numComputedTokens[row];
      for (int32_t i = batch.queryStarts[row]; i < batch.queryStarts[row + 1]; ++i, ++position) {
        batch.tokenIds[i] = tokenIds[position];
        batch.positions[i] = position;
        for (int32_t group = 0; group < requests.numGroups; ++group) {
          const int32_t* blocks =
              requests.ofGroup(group).blockTable + slot * requests.maxBlocksPerSeq;
          batch.ofGroup(group).cacheSlots[i] =
              blocks[position / blockSize] * blockSize + position % blockSize;
        }
      }
    }
  }

  void embed(const int32_t* tokenIds, int32_t numTokens, const LinearWeight& table,
             int32_t firstToken, void* out) override {
    const StorageType type = table.format.type;
    const int64_t width = table.cols;
    const auto read = [&](int64_t from, float* row) {
      if (table.isArranged) return decodeTiledRow(table, from, row);
      if (!isFloat(type)) return kernels_.decode[indexOfStored(type)](table, from, 0, width, row);
      kernels_.widen[indexOf(dtypeOf(type))](
          static_cast<const char*>(table.data) + from * bytesOf(type, width), width, row);
    };
    pool_.parallelFor(numTokens, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = static_cast<float*>(out) + i * width;
        const int64_t from = int64_t{tokenIds[i]} - firstToken;
        if (from >= 0 && from < table.rows) {
          read(from, row);
        } else {
          std::fill_n(row, width, 0.0f);
        }
      }
    });
  }

  void rmsNorm(const void* x, void* residual, int32_t numTokens, const Weight& weight, float eps,
               void* out) override {
    const auto normalize = kernels_.rmsNorm[indexOf(weight.dtype)];
    const int64_t size = weight.rows;
    pool_.parallelFor(numTokens, minRowsPerPart(size), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        normalize(x ? static_cast<const float*>(x) + i * size : nullptr,
                  static_cast<float*>(residual) + i * size, size, weight.data, weight.offset, eps,
                  static_cast<float*>(out) + i * size);
      }
    });
  }

  void arrange(LinearWeight& weight, int64_t sliceRows) override {
    linear_.arrange(weight, sliceRows);
  }

  void linear(const void* x, int32_t numTokens, const LinearWeight& weight, void* out,
              DType) override {
    linear_.run(static_cast<const float*>(x), numTokens, weight, static_cast<float*>(out));
  }

  void ropeAndCache(void* qkv, const Batch& batch, const AttentionShape& shape, const Weight& qNorm,
                    const Weight& kNorm, float eps, const float* rope,
                    const KvCache& cache) override {
    const int64_t headDim = shape.headDim;
    const int64_t kvWidth = shape.numKvHeads * headDim;
    const int64_t width = shape.rowWidth();
    const int32_t numRotated = shape.numHeads + (shape.hasKeys ? shape.numKvHeads : 0);
    const auto narrow = kernels_.narrow[indexOfCached(cache.type)];
    const auto minRows = minRowsPerPart(width);
    pool_.parallelFor(batch.numTokens, minRows, [&](int64_t begin, int64_t end, int) {
      std::vector<float> scaled(static_cast<size_t>(cache.isFloat8() ? kvWidth : 0));
      const auto store = [&](const float* x, float scale, void* to) {
        if (scale != 1.0f) {
          for (int64_t j = 0; j < kvWidth; ++j) scaled[j] = x[j] / scale;
          x = scaled.data();
        }
        narrow(x, kvWidth, to);
      };
      for (int64_t i = begin; i < end; ++i) {
        const float* cos = rope ? rope + batch.positions[i] * headDim : nullptr;
        float* queries = static_cast<float*>(qkv) + i * width;
        float* keys = queries + shape.numHeads * headDim;
        const float* values = keys + kvWidth;
        for (int64_t head = 0; head < numRotated; ++head) {
          float* x = queries + head * headDim;
          const Weight& norm = head < shape.numHeads ? qNorm : kNorm;
          if (norm) {
            kernels_.rmsNorm[indexOf(norm.dtype)](nullptr, x, headDim, norm.data, norm.offset, eps,
                                                  x);
          }
          if (cos) kernels_.rotate(x, cos, cos + headDim / 2, headDim / 2);
        }
        if (!shape.hasKeys) continue;
        const int64_t offset =
            batch.cacheSlots[i] * kvWidth * static_cast<int64_t>(sizeOf(cache.type));
        store(keys, cache.keyScale, static_cast<char*>(cache.keys) + offset);
        store(values, cache.valueScale, static_cast<char*>(cache.values) + offset);
      }
    });
  }

  void normValues(void* qkv, int32_t numTokens, const AttentionShape& shape, float eps,
                  DType) override {
    const int64_t width = int64_t{shape.numKvHeads} * shape.headDim;
    pool_.parallelFor(numTokens, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
      normValueRows(static_cast<float*>(qkv), begin, end, shape, eps);
    });
  }

  void scaleBy(void* x, int64_t count, const Weight& factor, DType type) override {
    const auto* stored = static_cast<const std::byte*>(factor.data);
    scale(x, count, elementAt(stored, factor.dtype, 0) + factor.offset, type);
  }

  void scaleQueries(void* qkv, const Batch& batch, const AttentionShape& shape,
                    const Temperature& temperature, DType) override {
    const int64_t width = int64_t{shape.numHeads} * shape.headDim;
    pool_.parallelFor(batch.numTokens, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
      scaleQueryRows(static_cast<float*>(qkv), begin, end, batch.positions, shape, temperature);
    });
  }

  void attention(const void* qkv, const Batch& batch, const AttentionShape& shape,
                 const KvCache& cache, const RequestTable& requests, void* out) override {
    attention_.run(static_cast<const float*>(qkv), batch, shape, cache, requests,
                   static_cast<float*>(out));
  }

  void activateAndMulRows(const GateAndUp& in, int32_t numTokens, int32_t size,
                          Activation activation, void* out, DType) override {
    pool_.parallelFor(numTokens, minRowsPerPart(size), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        const float* gate = static_cast<const float*>(in.gate) + row * in.gateStride;
        const float* up = static_cast<const float*>(in.up) + row * in.upStride;
        float* to = static_cast<float*>(out) + row * size;
        if (activation == Activation::kSilu) {
          kernels_.siluAndMul(gate, up, size, to);
        } else {
          activateAndMulRow(gate, up, size, activation, to);
        }
      }
    });
  }

  void scale(void* x, int64_t count, float factor, DType) override {
    pool_.parallelFor(count, kMinElementsPerPart, [&](int64_t begin, int64_t end, int) {
      kernels_.scale(static_cast<float*>(x) + begin, end - begin, factor);
    });
  }

  void softcap(float* x, int64_t count, float cap) override {
    pool_.parallelFor(count, kMinElementsPerPart, [&](int64_t begin, int64_t end, int) {
      kernels_.softcap(x + begin, end - begin, cap);
    });
  }

  void add(void* residual, const void* x, int64_t count, DType) override {
    pool_.parallelFor(count, kMinElementsPerPart, [&](int64_t begin, int64_t end, int) {
      addTo(static_cast<float*>(residual), static_cast<const float*>(x), begin, end);
    });
  }

  void addGated(const void* x, const void* gate, int32_t numTokens, int32_t width, void* out,
                DType) override {
    pool_.parallelFor(numTokens, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
      addGatedRows(static_cast<const float*>(x), static_cast<const float*>(gate), begin, end, width,
                   static_cast<float*>(out));
    });
  }

  void sumSquares(const void* qkv, int32_t numTokens, const AttentionShape& shape, float* sums,
                  DType) override {
    const int64_t width = int64_t{shape.numHeads + 2 * shape.numKvHeads} * shape.headDim;
    pool_.parallelFor(numTokens, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
      sumSquaresRows(static_cast<const float*>(qkv), begin, end, shape, sums);
    });
  }

  void normProjections(void* qkv, int32_t numTokens, const AttentionShape& shape,
                       const ProjectionNorm& norm, DType) override {
    const int64_t width = int64_t{shape.numHeads + 2 * shape.numKvHeads} * shape.headDim;
    pool_.parallelFor(numTokens, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
      normProjectionRows(static_cast<float*>(qkv), begin, end, shape, norm,
                         kernels_.widen[indexOf(norm.q.dtype)]);
    });
  }

  void gatherRows(const void* x, const int32_t* index, int32_t count, int32_t width, void* out,
                  DType) override {
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(static_cast<const float*>(x) + int64_t{index[i]} * width, width,
                  static_cast<float*>(out) + i * width);
    }
  }

  void joinColumns(const float* parts, int32_t count, int32_t partWidth, int32_t width,
                   float* out) override {
    pool_.parallelFor(count, minRowsPerPart(width), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t col = 0; col < width; col += partWidth) {
          const int64_t part = col / partWidth;
          std::copy_n(parts + (part * count + row) * partWidth,
                      std::min<int64_t>(partWidth, width - col), out + row * width + col);
        }
      }
    });
  }

  // Experts --------------------------------------------------------------------------------

  void routeTokens(const void* logits, const SoftmaxRouting& rule, const Routing& routing,
                   DType) override {
    experts_.routeTokens(static_cast<const float*>(logits), rule, routing);
  }

  void routeTokensBySigmoid(const float* logits, const SigmoidRouting& rule,
                            const Routing& routing) override {
    uniproc::routeTokensBySigmoid(pool_, logits, rule, routing);
  }

  void expertLinear(const void* x, int32_t rowsPerToken, const Routing& routing,
                    const LinearWeight& weight, void* out, DType) override {
    experts_.expertLinear(static_cast<const float*>(x), rowsPerToken, routing, weight,
                          static_cast<float*>(out));
  }

  void applyWeights(void* x, const Routing& routing, int32_t width, DType) override {
    experts_.applyWeights(static_cast<float*>(x), routing, width);
  }

  void sumExperts(const void* x, const Routing& routing, int32_t width, void* out, DType) override {
    experts_.sumExperts(static_cast<const float*>(x), routing, width, static_cast<float*>(out));
  }

  // Sampling -------------------------------------------------------------------------------

  void sample(float* logits, int32_t count, int32_t vocabSize, const int32_t* slots,
              const RequestTable& requests, const int32_t* bitmask, const SampledFeatures&,
              int32_t* sampled, int32_t* numNans, const Logprobs& logprobs) override {
    sampler_.sample(logits, count, vocabSize, slots, requests, bitmask, sampled, numNans, logprobs);
  }

  void gatherLogprobs(const float* logits, int32_t count, int32_t vocabSize,
                      const int32_t* tokenIds, int32_t numTop, int32_t* numNans,
                      const Logprobs& out) override {
    sampler_.gatherLogprobs(logits, count, vocabSize, tokenIds, numTop, numNans, out);
  }

 private:
  // Converts through float32, in chunks that fit the cache.
  void convert(std::byte* to, DType outType, const std::byte* from, DType hostType,
               int64_t count) const {
    constexpr int64_t kBlock = 1024;
    float block[kBlock];
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t size = std::min(kBlock, count - i);
      kernels_.widen[indexOf(hostType)](from + i * static_cast<int64_t>(sizeOf(hostType)), size,
                                        block);
      kernels_.narrow[indexOf(outType)](block, size,
                                        to + i * static_cast<int64_t>(sizeOf(outType)));
    }
  }

  const Kernels& kernels_;
  MemoryAccount memory_;
  ThreadPool pool_;
  Linear linear_;
  Experts experts_;
  Attention attention_;
  Sampler sampler_;

  StepTimes stepTimes_;
  Clock::time_point stepBegan_;
  Milliseconds idleBeforeStep_{0};
  std::optional<Clock::time_point> stepEnded_;  // end of the last step
};

}  // namespace

std::unique_ptr<Ops> makeCpuOps(int numThreads, std::string_view isa) {
  return std::make_unique<CpuOps>(numThreads, isa);
}

}  // namespace uniproc
