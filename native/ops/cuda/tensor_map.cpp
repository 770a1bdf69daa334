#include "ops/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::cuda {
namespace {

// The driver's function, without linking against the driver.
PFN_cuTensorMapEncodeTiled_v12000 encodeFunction() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
        "cudaGetDriverEntryPoint");
#endif
  if (found != cudaDriverEntryPointSuccess) {
    throw Error("DEVICE_FAILED", "the driver has no cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

// Sizes and strides in elements and bytes, the innermost dimension first.
template <cuuint32_t kRank>
CUtensorMap encode(CUtensorMapDataType type, const void* base, const cuuint64_t (&sizes)[kRank],
                   const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank],
                   CUtensorMapL2promotion promotion,
                   CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  static const auto encodeTiled = encodeFunction();
  cuuint32_t steps[kRank];
  std::fill_n(steps, kRank, 1);
  CUtensorMap map;
  const CUresult status = encodeTiled(&map, type, kRank, const_cast<void*>(base), sizes, strides,
                                      box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion,
                                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error("DEVICE_FAILED", "cuTensorMapEncodeTiled failed: error " + std::to_string(status));
  }
  return map;
}

}  // namespace

CUtensorMap cacheMap(const void* base, bool isFloat16, int32_t numKvHeads, int32_t headDim,
                     int32_t boxKeys) {
  const auto heads = static_cast<cuuint64_t>(numKvHeads);
  const auto columns = static_cast<cuuint64_t>(headDim);
  const cuuint64_t rowBytes = heads * columns * 2;
  constexpr cuuint64_t kGroups = 1u << 28;  // no bound on the cache slots: the block table is valid
  return encode<5>(
      isFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, base,
      {64, 8, columns / 64, kGroups, heads}, {rowBytes, 128, 8 * rowBytes, columns * 2},
      {64, 8, static_cast<cuuint32_t>(headDim / 64), static_cast<cuuint32_t>(boxKeys / 8), 1},
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

CUtensorMap weightMap(const void* base, int32_t elementBytes, int64_t rows, int64_t cols,
                      int32_t boxPanels, int32_t boxRows) {
  const auto width = static_cast<cuuint64_t>(128 / elementBytes);
  const auto columns = static_cast<cuuint64_t>(cols);
  // Promotion to 256 bytes, two rows' panels, made products 2 to 7% slower.
  return encode<3>(
      elementBytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, base,
      {width, static_cast<cuuint64_t>(rows), columns / width},
      {columns * static_cast<cuuint64_t>(elementBytes), 128},
      {static_cast<cuuint32_t>(width), static_cast<cuuint32_t>(boxRows),
       static_cast<cuuint32_t>(boxPanels)},
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

CUtensorMap matrixMap(const void* base, int32_t elementBytes, int64_t rows, int64_t cols,
                      int32_t boxRows, int32_t boxBytes) {
  const auto columns = static_cast<cuuint64_t>(cols);
  return encode<2>(
      elementBytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, base,
      {columns, static_cast<cuuint64_t>(rows)}, {columns * static_cast<cuuint64_t>(elementBytes)},
      {static_cast<cuuint32_t>(boxBytes / elementBytes), static_cast<cuuint32_t>(boxRows)},
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      boxBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B);
}

}  // namespace uniproc::cuda
