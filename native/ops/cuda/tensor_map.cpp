#include "ops/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

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

}  // namespace

CUtensorMap cacheMap(const void* base, bool isFloat16, int32_t numKvHeads, int32_t headDim,
                     int32_t boxKeys) {
  static const auto encode = encodeFunction();
  const auto heads = static_cast<cuuint64_t>(numKvHeads);
  const auto columns = static_cast<cuuint64_t>(headDim);
  const cuuint64_t rowBytes = heads * columns * 2;
  constexpr cuuint64_t kGroups = 1u << 28;  // no bound on the cache slots: the block table is valid
  const cuuint64_t sizes[5] = {64, 8, columns / 64, kGroups, heads};
  const cuuint64_t strides[4] = {rowBytes, 128, 8 * rowBytes, columns * 2};
  const cuuint32_t box[5] = {64, 8, static_cast<cuuint32_t>(headDim / 64),
                             static_cast<cuuint32_t>(boxKeys / 8), 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, isFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             5, const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error("DEVICE_FAILED", "cuTensorMapEncodeTiled failed: error " + std::to_string(status));
  }
  return map;
}

}  // namespace uniproc::cuda
