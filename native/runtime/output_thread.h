// The thread that waits for steps, so that their outputs are delivered in order of submission
// (vLLM's async_output_thread).
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/queue.h"
#include "runtime/event.h"
#include "runtime/stoppable.h"

namespace uniproc {

class OutputThread : public Stoppable {
 public:
  // Receives the event's error, or null. Must not throw.
  using Callback = std::function<void(std::exception_ptr)>;

  // Starts the thread under this name.
  explicit OutputThread(const std::string& name);
  ~OutputThread() override;

  // Calls `callback` once, on this thread, in order of submission; after `stop` with SHUT_DOWN, on
  // the calling thread.
  void submit(std::shared_ptr<Event> event, Callback callback);

  // Still waits for submitted device events; host events not signalled by then fail with SHUT_DOWN.
  void stop(std::function<void()> stopped) override;
  void abandon() override { stop(nullptr); }
  void join() override;

 private:
  struct Item {
    std::shared_ptr<Event> event;
    Callback callback;
  };

  void run(const std::string& name);

  Queue<Item> queue_;
  std::mutex mutex_;  // guards the three members below
  std::shared_ptr<Event> awaited_;
  bool stopping_ = false;
  std::function<void()> stopped_;

  std::thread thread_;
};

}  // namespace uniproc
