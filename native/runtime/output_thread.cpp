#include "runtime/output_thread.h"

#include <utility>

#include "base/error.h"
#include "base/thread_name.h"

namespace uniproc {
namespace {

std::exception_ptr shutDown() {
  return std::make_exception_ptr(Error("SHUT_DOWN", "the output thread was shut down"));
}

// What nobody may come to signal any more must not be waited for.
void giveUp(Event& event) {
  if (event.source() == Event::Source::kHost) event.complete(shutDown());
}

}  // namespace

OutputThread::OutputThread(const std::string& name) : thread_([this, name] { run(name); }) {}

OutputThread::~OutputThread() {
  abandon();
  join();
}

void OutputThread::run(const std::string& name) {
  setThreadName(name);
  while (std::optional<Item> item = queue_.pop()) {
    {
      std::lock_guard lock(mutex_);
      awaited_ = item->event;
      if (stopping_) giveUp(*awaited_);
    }
    item->callback(item->event->wait());
  }
  std::function<void()> stopped;
  {
    std::lock_guard lock(mutex_);
    awaited_ = nullptr;
    stopped = std::move(stopped_);
  }
  if (stopped) stopped();
}

void OutputThread::submit(std::shared_ptr<Event> event, Callback callback) {
  Item item{std::move(event), std::move(callback)};
  if (queue_.push(std::move(item))) return;
  giveUp(*item.event);
  item.callback(shutDown());
}

void OutputThread::stop(std::function<void()> stopped) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  stopping_ = true;
  stopped_ = std::move(stopped);
  if (awaited_) giveUp(*awaited_);
  queue_.close();
}

void OutputThread::join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace uniproc
