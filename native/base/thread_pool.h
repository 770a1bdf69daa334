// The threads that share an operation's work: the calling device thread and numThreads - 1 helpers.
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

  // Runs body(part, thread) once for each part below numParts, on the calling thread and on helpers
  // that wake in time; it does not wait for helpers that have not claimed a part. Returns when all
  // parts have run; rethrows one of their exceptions.
  template <class Body>
  void run(int numParts, const Body& body) {
    runRegion(
        numParts,
        [](const void* context, int part, int thread) {
          (*static_cast<const Body*>(context))(part, thread);
        },
        &body);
  }

  // Splits [0, count) into equal ranges of at least minPerPart and runs body(begin, end, thread)
  // for each.
  template <class Body>
  void parallelFor(int64_t count, int64_t minPerPart, const Body& body) {
    const int parts = numParts(count, minPerPart);
    run(parts, [&](int part, int thread) {
      body(count * part / parts, count * (part + 1) / parts, thread);
    });
  }

  // The number of parts to divide `count` units of work into. A part has at least minPerPart units,
  // which pay for waking a thread. Each thread gets several parts, so that slower threads can run
  // fewer.
  int numParts(int64_t count, int64_t minPerPart) const;

 private:
  using Body = void (*)(const void* context, int part, int thread);

  struct alignas(64) Helper {
    std::atomic<uint32_t> wakeUps{0};
    std::thread thread;
  };

  void runRegion(int numParts, Body body, const void* context);
  bool claimPart(int* part);
  void runParts(int thread) noexcept;
  void help(Helper& helper, int thread);
  static void wake(Helper& helper);
  void stop() noexcept;

  std::vector<std::unique_ptr<Helper>> helpers_;
  std::atomic<bool> stopping_{false};

  // The region being run. Claiming a part synchronizes with the stores before `unclaimed_`, and the
  // region does not end before that part is done.
  Body body_ = nullptr;
  const void* context_ = nullptr;
  std::mutex errorMutex_;
  std::exception_ptr error_;
  uint32_t region_ = 0;
  // Region number (upper 32 bits), number of parts and next part to claim (16 bits each). One word
  // holds all three, so that a part of a later region is never claimed with an earlier region's
  // counts.
  alignas(64) std::atomic<uint64_t> unclaimed_{0};
  alignas(64) std::atomic<uint32_t> unfinishedParts_{0};
};

}  // namespace uniproc
