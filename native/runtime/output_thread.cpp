#include "runtime/output_thread.h"

#include <utility>

#include "base/error.h"
#include "base/thread_name.h"

namespace uniproc {
namespace {

std::exception_ptr shutDown() {
  return std::make_exception_ptr(Error("SHUT_DOWN", "the output thread was shut down"));
}

// A host event may never be signalled, so it fails instead of being waited for.
void failHostEvent(Event& event) {
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
      if (stopping_) failHostEvent(*awaited_);
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
  failHostEvent(*item.event);
  item.callback(shutDown());
}

void OutputThread::stop(std::function<void()> stopped) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  stopping_ = true;
  stopped_ = std::move(stopped);
  if (awaited_) failHostEvent(*awaited_);
  queue_.close();
}

void OutputThread::join() {
  if (thread_.joinable()) thread_.join();
}

}  // namespace uniproc
