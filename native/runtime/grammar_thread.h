// The thread that compiles grammars and fills masks, so that neither the JavaScript thread nor the
// device's waits for them.
#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "base/queue.h"
#include "base/stop_token.h"
#include "grammar/matchers.h"
#include "runtime/stoppable.h"

namespace uniproc {

class GrammarThread : public Stoppable {
 public:
  using Work = std::function<void(GrammarMatchers&)>;
  // Called exactly once per task, usually on this thread, with null or the task's exception. Must
  // not throw.
  using Done = std::function<void(std::exception_ptr)>;

  explicit GrammarThread(const std::string& name);
  ~GrammarThread() override;

  // Runs tasks in order; after `stop` fails with SHUT_DOWN, on the calling thread.
  void enqueue(Work work, Done done = nullptr);

  // `stop` runs the tasks that are queued; `abandon` fails them with SHUT_DOWN.
  void stop(std::function<void()> stopped) override;
  void abandon() override;
  void join() override;

 private:
  struct Task {
    Work work;
    Done done;
  };

  void run(const std::string& name);

  Queue<Task> queue_;
  StopSource abandoned_;
  std::mutex mutex_;  // guards the two members below
  bool stopping_ = false;
  std::function<void()> stopped_;

  std::thread thread_;
};

}  // namespace uniproc
