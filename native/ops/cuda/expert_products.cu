// Chooses how the products of expert_products.cuh are computed.
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/expert_products.cuh"
#include "ops/cuda/tensor_map.h"

namespace uniproc::cuda {
namespace {

using experts::Product;
using experts::Tiles;

template <class Config>
void run(const LinearWeight& weight, Product product, int numMultiprocessors, cudaStream_t stream) {
  const CUtensorMap map =
      weightMap(weight.data, 2, weight.rows, weight.cols, Config::kPanels, Config::kBoxRows);
  const auto kernel = experts::expertProducts<Config>;
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kRingBytes),
      "cudaFuncSetAttribute of expertProducts");
  const int blocks = Config::kBlocks * numMultiprocessors;
  launch(kernel, static_cast<unsigned>(blocks), Config::kThreads, Config::kRingBytes, stream, map,
         product);
  check(cudaGetLastError(), "expertProducts");
}

// Whether the kernels, as loaded on this thread's device, were compiled for sm_90a: otherwise
// their bodies are empty, and they have no static shared memory.
bool askDevice() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes,
                              experts::expertProducts<experts::Few<__nv_bfloat16, 8, false>>),
        "cudaFuncGetAttributes of expertProducts");
  return attributes.sharedSizeBytes > 0;
}

bool isSupported(const LinearWeight& weight, int32_t numExperts, int64_t units) {
  return weight.dtype != DType::kFloat32 && weight.cols % experts::kPanelColumns == 0 &&
         units % experts::kGroupRows == 0 && weight.rows % numExperts == 0 &&
         isAligned(weight.data) && (!weight.bias || weight.bias.dtype == weight.dtype);
}

}  // namespace

bool areFewPairs(const Routing& routing) { return routing.numRows() <= experts::kMaxFewPairs; }

bool hasExpertProducts(const Routing& routing, const ExpertMlp& mlp) {
  thread_local const bool hasKernels = askDevice();
  const int32_t numExperts = routing.numLocal;
  return hasKernels && numExperts > 0 && numExperts <= experts::kMaxExperts &&
         isSupported(mlp.gateUp, numExperts, mlp.down.cols) &&
         isSupported(mlp.down, numExperts, mlp.down.rows / numExperts);
}

void expertProducts(const void* x, const Routing& routing, const ExpertGroups& groups,
                    const LinearWeight& weight, const ExpertStage& stage, void* out,
                    int numMultiprocessors, cudaStream_t stream) {
  Product product{};
  product.x = x;
  if (groups.offsets) {
    product.offsets = groups.offsets + stage.firstExpert;
    product.pairs = groups.pairs;
  }
  product.expertIds = routing.expertIds;
  product.numPairs = routing.numRows();
  product.firstExpert = routing.firstLocal + stage.firstExpert;
  product.bias = weight.bias.data;
  product.out = out;
  product.pairsPerInput = stage.isGated ? routing.topK : 1;
  product.numExperts = stage.numExperts;
  product.rows = static_cast<int32_t>(weight.rows / stage.numExperts);
  product.cols = static_cast<int32_t>(weight.cols);
  product.activation = stage.activation;
  product.areGroupsReady = stage.areGroupsReady;
  const int32_t pairsPerExpert = ceilDiv(routing.numRows(), routing.numExperts);
  const auto choose = [&]<class T, bool kGated>() {
    const auto use = [&]<class Config>(bool isEven) {
      product.isEven = isEven;
      run<Config>(weight, product, numMultiprocessors, stream);
    };
    if (routing.numTokens <= 8) return use.template operator()<experts::Few<T, 8, kGated>>(true);
    if (routing.numTokens <= 16) return use.template operator()<experts::Few<T, 16, kGated>>(true);
    if (pairsPerExpert <= 20) return use.template operator()<experts::Some<T, 32, kGated>>(true);
    if (pairsPerExpert <= 48) return use.template operator()<experts::Some<T, 64, kGated>>(true);
    use.template operator()<experts::Many<T, kGated>>(false);
  };
  withType(weight.dtype, [&]<class T>(T) {
    if constexpr (!std::is_same_v<T, float>) {
      if (stage.isGated) return choose.template operator()<T, true>();
      choose.template operator()<T, false>();
    }
  });
}

}  // namespace uniproc::cuda
