#pragma once

#include <algorithm>
#include <cstdint>

namespace uniproc {

// Elements whose processing takes as long as waking a thread.
constexpr int64_t kMinElementsPerPart = 1 << 14;

// Rows of `width` elements that hold that many; at least one.
constexpr int64_t minRowsPerPart(int64_t width) {
  return std::max<int64_t>(kMinElementsPerPart / width, 1);
}

}  // namespace uniproc
