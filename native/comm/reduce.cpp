#include "comm/reduce.h"

#include <algorithm>
#include <type_traits>

#include "base/float_types.h"

namespace uniproc {
namespace {

// Elements are combined as integers or as float32.
template <typename T>
auto widened(T x) {
  if constexpr (std::is_integral_v<T>) {
    return x;
  } else {
    return widen(x);
  }
}

template <typename T, typename Wide>
T narrowed(Wide x) {
  if constexpr (std::is_integral_v<T>) {
    return x;
  } else {
    return narrow<T>(x);
  }
}

template <typename T, typename Combine>
void reduceWith(std::span<const void* const> sources, int64_t count, void* out, Combine combine) {
  constexpr int64_t kBlock = 1024;
  using Wide = decltype(widened(T{}));
  Wide wide[kBlock];
  T* to = static_cast<T*>(out);
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t size = std::min(kBlock, count - first);
    for (size_t source = 0; source < sources.size(); ++source) {
      const T* from = static_cast<const T*>(sources[source]) + first;
      if (source == 0) {
        for (int64_t i = 0; i < size; ++i) wide[i] = widened(from[i]);
      } else {
        for (int64_t i = 0; i < size; ++i) wide[i] = combine(wide[i], widened(from[i]));
      }
    }
    for (int64_t i = 0; i < size; ++i) to[first + i] = narrowed<T>(wide[i]);
  }
}

// Signed overflow is undefined behaviour, so integers are summed as unsigned ones, which wrap.
template <typename T, typename Summed = T>
void reduceOf(std::span<const void* const> sources, int64_t count, ReduceOp op, void* out) {
  // x != x holds for NaN alone.
  const auto least = [](auto a, auto b) { return b < a || b != b ? b : a; };
  const auto greatest = [](auto a, auto b) { return b > a || b != b ? b : a; };
  switch (op) {
    case ReduceOp::kSum:
      return reduceWith<Summed>(sources, count, out, [](auto a, auto b) { return a + b; });
    case ReduceOp::kMin:
      return reduceWith<T>(sources, count, out, least);
    case ReduceOp::kMax:
      return reduceWith<T>(sources, count, out, greatest);
  }
}

}  // namespace

void reduce(std::span<const void* const> sources, int64_t count, CommType type, ReduceOp op,
            void* out) {
  switch (type) {
    case CommType::kInt64:
      return reduceOf<int64_t, uint64_t>(sources, count, op, out);
    case CommType::kFloat32:
      return reduceOf<float>(sources, count, op, out);
    case CommType::kFloat16:
      return reduceOf<Float16>(sources, count, op, out);
    case CommType::kBFloat16:
      return reduceOf<BFloat16>(sources, count, op, out);
  }
}

}  // namespace uniproc
