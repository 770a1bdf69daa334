#include "ops/cpu/kernels.h"

#include <string>

#include "base/error.h"

namespace uniproc {

const Kernels& chooseKernels(std::string_view name) {
  std::string available;
  for (const Kernels* kernels :
       {avx512BFloat16Kernels(), avx512Kernels(), avx2Kernels(), plainKernels()}) {
    if (!kernels) continue;
    if (name.empty() || name == kernels->name) return *kernels;
    available += std::string(available.empty() ? "" : ", ") + kernels->name;
  }
  throw Error("NOT_SUPPORTED", "this processor or build does not support the instruction set '" +
                                   std::string(name) + "'; supported: " + available);
}

}  // namespace uniproc
