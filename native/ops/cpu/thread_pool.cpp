#include "ops/cpu/thread_pool.h"

#include <algorithm>
#include <string>

#include "runtime/thread_name.h"

namespace uniproc {
namespace {

// A region follows the last within microseconds inside a step, so a thread first looks for it for
// about 20 microseconds; between steps it sleeps, since the core is needed by the event loop.
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
    for (int part = 1; part < numThreads; ++part) {
      helpers_.push_back(std::make_unique<Helper>());
      Helper& helper = *helpers_.back();
      helper.thread = std::thread([this, &helper, part] {
        setThreadName("Worker-" + std::to_string(part));
        help(helper, part);
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
    helper->regions.fetch_add(1, std::memory_order_release);
    helper->regions.notify_one();
    if (helper->thread.joinable()) helper->thread.join();
  }
}

int ThreadPool::numParts(int64_t count, int64_t minPerPart) const {
  return static_cast<int>(
      std::clamp<int64_t>(count / std::max<int64_t>(minPerPart, 1), 1, numThreads()));
}

void ThreadPool::runParts(int numParts, Body body, const void* context) {
  body_ = body;
  context_ = context;
  error_ = nullptr;
  pending_.store(static_cast<uint32_t>(numParts - 1), std::memory_order_relaxed);
  for (int part = 1; part < numParts; ++part) {
    Helper& helper = *helpers_[part - 1];
    helper.regions.fetch_add(1, std::memory_order_release);
    helper.regions.notify_one();
  }
  runPart(0);
  for (uint32_t left; (left = pending_.load(std::memory_order_acquire)) != 0;)
    waitWhile(pending_, left);
  if (error_) std::rethrow_exception(error_);
}

void ThreadPool::runPart(int part) noexcept {
  try {
    body_(context_, part);
  } catch (...) {
    const std::lock_guard lock(errorMutex_);
    error_ = std::current_exception();
  }
}

void ThreadPool::help(Helper& helper, int part) {
  for (uint32_t seen = 0;; ++seen) {
    waitWhile(helper.regions, seen);
    if (stopping_) return;
    runPart(part);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace uniproc
