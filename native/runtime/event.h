// One-shot completion of work on another thread, as a CUDA event for a stream.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

namespace uniproc {

class Event {
 public:
  // What completes the event. A device always does, possibly with an error; a host event may never
  // complete.
  enum class Source : uint8_t { kDevice, kHost };
  // Receives the event's error, or null.
  using Continuation = std::function<void(std::exception_ptr)>;

  explicit Event(Source source) : source_(source) {}

  Source source() const { return source_; }
  bool done() const { return done_.load(std::memory_order_acquire); }

  // Completes the event with an error or null. Only the first call has an effect.
  void complete(std::exception_ptr error = nullptr);

  // Waits for completion; returns the event's error, or null.
  std::exception_ptr wait();
  // Calls `continuation` once: at once if the event is done, else on the thread that completes it.
  void onReady(Continuation continuation);

 private:
  const Source source_;
  std::atomic<bool> done_ = false;
  std::mutex mutex_;
  std::condition_variable finished_;
  std::exception_ptr error_;
  std::vector<Continuation> continuations_;
};

}  // namespace uniproc
