#include "addon_testing/read_rate.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"

namespace uniproc {
namespace {

using Vector = uint64_t __attribute__((vector_size(16)));

struct alignas(64) Line {
  Vector vectors[4];
};

constexpr int64_t kAhead = 128;  // lines that are prefetched

// A sum of all words, which depends on every one.
uint64_t sumLines(const Line* lines, int64_t count) {
  Vector sums[4] = {};
  for (int64_t i = 0; i < count; ++i) {
    __builtin_prefetch(lines + i + kAhead);
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; ++lane) sums[lane] += lines[i].vectors[lane];
  }
  const Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return sum[0] + sum[1];
}

}  // namespace

struct ReadRate::State {
  State(int64_t bytes, int numThreads)
      : lines(static_cast<size_t>(bytes) / sizeof(Line), Line{{{1, 1}}}), pool(numThreads) {}

  std::vector<Line> lines;
  ThreadPool pool;
  std::atomic<uint64_t> sum{0};  // keeps the reads from being optimized away
};

ReadRate::ReadRate(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<ReadRate>(info),
      state_(std::make_unique<State>(info[0].ToNumber().Int64Value(),
                                     info[1].ToNumber().Int32Value())) {}

ReadRate::~ReadRate() = default;

Napi::Function ReadRate::define(Napi::Env env) {
  return DefineClass(env, "ReadRate", {InstanceMethod<&ReadRate::measure>("measure")});
}

Napi::Value ReadRate::measure(const Napi::CallbackInfo& info) {
  State& state = *state_;
  const auto count = static_cast<int64_t>(state.lines.size());
  const auto begin = std::chrono::steady_clock::now();
  state.pool.parallelFor(count, 1, [&state](int64_t from, int64_t to, int) {
    state.sum += sumLines(state.lines.data() + from, to - from);
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return Napi::Number::New(info.Env(), static_cast<double>(count) * sizeof(Line) / seconds.count());
}

}  // namespace uniproc
