// One-shot completion of work on another thread, as a CUDA event is to a stream.
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
  // Who completes it. A device always does, be it with an error; a host event's owner may never.
  enum class Source : uint8_t { kDevice, kHost };
  // Takes the error the event failed with, null when it completed.
  using Continuation = std::function<void(std::exception_ptr)>;

  explicit Event(Source source) : source_(source) {}

  Source source() const { return source_; }
  bool done() const { return done_.load(std::memory_order_acquire); }

  // Makes it done, with the error it failed with or null. The first call counts, later ones do
  // nothing.
  void complete(std::exception_ptr error = nullptr);

  // Returns when the event is done, with the error it failed with or null.
  std::exception_ptr wait();
  // Calls `continuation` once: now if the event is done, else on the thread that completes it.
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
