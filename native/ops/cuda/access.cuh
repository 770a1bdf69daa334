// The width of a kernel's memory accesses, chosen by its arguments.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "ops/cuda/device_math.cuh"

namespace uniproc::cuda {

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls run(Constant<N>{}), N being the elements of T that a thread can move at once.
template <class T, class Run>
void withAccess(int64_t width, std::initializer_list<const void*> addresses, Run run) {
  if (width % kElementsPerAccess<T> == 0 && std::ranges::all_of(addresses, isAligned)) {
    run(Constant<kElementsPerAccess<T>>{});
  } else {
    run(Constant<1>{});
  }
}

}  // namespace uniproc::cuda
