// The threads that share an operation's work: the calling one, which is the device's own, and
// numThreads - 1 helpers.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace uniproc {

class ThreadPool {
 public:
  explicit ThreadPool(int numThreads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int numThreads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Runs body(part) for part 0 .. numParts - 1, each on its own thread (numParts <= numThreads);
  // the caller takes part 0 and returns when all are done. Rethrows one of their exceptions.
  template <class Body>
  void run(int numParts, const Body& body) {
    runParts(
        numParts, [](const void* b, int part) { (*static_cast<const Body*>(b))(part); }, &body);
  }

  // Splits [0, count) into equal contiguous ranges of at least minPerPart and runs
  // body(begin, end, part) for each.
  template <class Body>
  void parallelFor(int64_t count, int64_t minPerPart, const Body& body) {
    const int parts = numParts(count, minPerPart);
    if (parts <= 1) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    run(parts, [&](int part) { body(count * part / parts, count * (part + 1) / parts, part); });
  }

  // Parts worth making of `count` units of work, of which minPerPart pay for waking a thread.
  int numParts(int64_t count, int64_t minPerPart) const;

 private:
  using Body = void (*)(const void*, int);

  // A helper sleeps on its own counter, so that only those a region needs are woken.
  struct alignas(64) Helper {
    std::atomic<uint32_t> regions{0};
    std::thread thread;
  };

  void runParts(int numParts, Body body, const void* context);
  void runPart(int part) noexcept;
  void help(Helper& helper, int part);
  void stop() noexcept;

  std::vector<std::unique_ptr<Helper>> helpers_;
  Body body_ = nullptr;
  const void* context_ = nullptr;
  bool stopping_ = false;
  std::mutex errorMutex_;
  std::exception_ptr error_;
  alignas(64) std::atomic<uint32_t> pending_{0};
};

}  // namespace uniproc
