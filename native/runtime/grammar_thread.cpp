#include "runtime/grammar_thread.h"

#include <optional>
#include <utility>

#include "base/error.h"
#include "base/thread_name.h"

namespace uniproc {
namespace {

std::exception_ptr shutDown() {
  return std::make_exception_ptr(Error("SHUT_DOWN", "the grammar thread was shut down"));
}

}  // namespace

GrammarThread::GrammarThread(const std::string& name) : thread_([this, name] { run(name); }) {}

GrammarThread::~GrammarThread() {
  abandon();
  join();
}

void GrammarThread::run(const std::string& name) {
  setThreadName(name);
  {
    GrammarMatchers matchers;
    while (std::optional<Task> task = queue_.pop()) {
      std::exception_ptr error = abandoned_.stopRequested() ? shutDown() : nullptr;
      if (!error) {
        try {
          task->work(matchers);
        } catch (...) {
          error = std::current_exception();
        }
      }
      if (task->done) task->done(error);
    }
  }
  std::function<void()> stopped;
  {
    std::lock_guard lock(mutex_);
    stopped = std::move(stopped_);
  }
  if (stopped) stopped();
}

void GrammarThread::enqueue(Work work, Done done) {
  Task task{std::move(work), std::move(done)};
  if (!queue_.push(std::move(task)) && task.done) task.done(shutDown());
}

void GrammarThread::stop(std::function<void()> stopped) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  stopping_ = true;
  stopped_ = std::move(stopped);
  queue_.close();
}

void GrammarThread::abandon() {
  abandoned_.requestStop();
  stop(nullptr);
}

void GrammarThread::join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace uniproc
