#include "base/thread_pool.h"

#include <algorithm>
#include <string>

#include "base/thread_name.h"

namespace uniproc {
namespace {

constexpr int kPartsPerThread = 4;
// Regions of one step follow each other within microseconds, so a helper spins for about 20
// microseconds before it sleeps. Between steps it sleeps to leave the core to the event loop.
constexpr int kSpins = 1000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns once `value` is no longer `old`.
void waitWhile(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int numThreads) {
  try {
    for (int thread = 1; thread < numThreads; ++thread) {
      helpers_.push_back(std::make_unique<Helper>());
      Helper& helper = *helpers_.back();
      helper.thread = std::thread([this, &helper, thread] {
        setThreadName("Worker-" + std::to_string(thread));
        help(helper, thread);
      });
    }
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() noexcept {
  stopping_ = true;
  for (auto& helper : helpers_) {
    wake(*helper);
    if (helper->thread.joinable()) helper->thread.join();
  }
}

int ThreadPool::numParts(int64_t count, int64_t minPerPart) const {
  if (helpers_.empty()) return 1;
  const int64_t most = std::min(kPartsPerThread * numThreads(), 0xffff);
  return static_cast<int>(std::clamp<int64_t>(count / minPerPart, 1, most));
}

void ThreadPool::runRegion(int numParts, Body body, const void* context) {
  if (numParts == 1) return body(context, 0, 0);
  const auto parts = static_cast<uint32_t>(numParts);
  body_ = body;
  context_ = context;
  error_ = nullptr;
  unfinishedParts_.store(parts, std::memory_order_relaxed);
  unclaimed_.store(uint64_t{++region_} << 32 | parts << 16, std::memory_order_release);
  for (size_t i = 0; i < std::min<size_t>(helpers_.size(), parts - 1); ++i) wake(*helpers_[i]);
  runParts(0);
  for (uint32_t left; (left = unfinishedParts_.load(std::memory_order_acquire)) != 0;) {
    waitWhile(unfinishedParts_, left);
  }
  if (error_) std::rethrow_exception(error_);
}

bool ThreadPool::claimPart(int* part) {
  uint64_t seen = unclaimed_.load(std::memory_order_acquire);
  while (true) {
    const uint64_t numParts = seen >> 16 & 0xffff;
    const uint64_t next = seen & 0xffff;
    if (next == numParts) return false;
    if (unclaimed_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) {
      *part = static_cast<int>(next);
      return true;
    }
  }
}

void ThreadPool::runParts(int thread) noexcept {
  for (int part; claimPart(&part);) {
    try {
      body_(context_, part, thread);
    } catch (...) {
      const std::lock_guard lock(errorMutex_);
      error_ = std::current_exception();
    }
    if (unfinishedParts_.fetch_sub(1, std::memory_order_acq_rel) == 1)
      unfinishedParts_.notify_one();
  }
}

void ThreadPool::help(Helper& helper, int thread) {
  while (!stopping_) {
    const uint32_t seen = helper.wakeUps.load(std::memory_order_acquire);
    runParts(thread);
    if (!stopping_) waitWhile(helper.wakeUps, seen);
  }
}

void ThreadPool::wake(Helper& helper) {
  helper.wakeUps.fetch_add(1, std::memory_order_release);
  helper.wakeUps.notify_one();
}

}  // namespace uniproc
