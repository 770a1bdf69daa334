#include "addon_testing/read_rate.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "addon/values.h"
#include "base/thread_pool.h"

namespace uniproc {
namespace {

constexpr int kPasses = 7;
constexpr int64_t kWordsPerPart = 1 << 16;

uint64_t combine(const uint64_t* words, int64_t count) {
  // Independent sums, so that loads do not wait for additions.
  std::array<uint64_t, 16> sums{};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (size_t lane = 0; lane < sums.size(); ++lane) sums[lane] ^= words[i + lane];
  }
  for (; i < count; ++i) sums[0] ^= words[i];
  uint64_t all = 0;
  for (const uint64_t sum : sums) all ^= sum;
  return all;
}

}  // namespace

Napi::Value readRate(const Napi::CallbackInfo& info) {
  const int64_t bytes = toInt64(info[0], "bytes");
  ThreadPool threads(toInt32(info[1], "numThreads"));
  const int64_t count = bytes / 8;
  std::vector<uint64_t> words(static_cast<size_t>(count));
  threads.parallelFor(count, kWordsPerPart, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) words[static_cast<size_t>(i)] = static_cast<uint64_t>(i);
  });
  std::atomic<uint64_t> all{0};  // read by nothing; keeps the loads
  std::vector<double> seconds(kPasses);
  for (double& pass : seconds) {
    const auto start = std::chrono::steady_clock::now();
    threads.parallelFor(count, kWordsPerPart, [&](int64_t begin, int64_t end, int) {
      all.fetch_xor(combine(words.data() + begin, end - begin), std::memory_order_relaxed);
    });
    pass = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::nth_element(seconds.begin(), seconds.begin() + kPasses / 2, seconds.end());
  return Napi::Number::New(info.Env(), static_cast<double>(8 * count) / seconds[kPasses / 2]);
}

}  // namespace uniproc
