// The thread that waits for steps on the JavaScript thread's behalf, so that their outputs come in
// the order of submission (vLLM's async_output_thread).
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
  // Takes the error the event failed with, null when it completed. Must not throw.
  using Callback = std::function<void(std::exception_ptr)>;

  // Starts the thread under that name.
  explicit OutputThread(const std::string& name);
  ~OutputThread() override;

  // `callback` is called once, on this thread, after those submitted before; after `stop` with
  // SHUT_DOWN, on the caller's.
  void submit(std::shared_ptr<Event> event, Callback callback);

  // Submitted events that a device holds are still waited for; host events nobody has signalled by
  // then fail with SHUT_DOWN.
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
  std::mutex mutex_;  // of the three below
  std::shared_ptr<Event> awaited_;
  bool stopping_ = false;
  std::function<void()> stopped_;

  std::thread thread_;
};

}  // namespace uniproc
