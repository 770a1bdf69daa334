#include "runtime/event.h"

#include <utility>

namespace uniproc {

std::exception_ptr Event::wait() {
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return done(); });
  return error_;
}

void Event::onReady(Continuation continuation) {
  {
    std::lock_guard lock(mutex_);
    if (!done()) {
      continuations_.push_back(std::move(continuation));
      return;
    }
  }
  continuation(error_);
}

void Event::complete(std::exception_ptr error) {
  std::vector<Continuation> continuations;
  {
    std::lock_guard lock(mutex_);
    if (done()) return;
    error_ = std::move(error);
    done_.store(true, std::memory_order_release);
    continuations.swap(continuations_);
    finished_.notify_all();
  }
  for (const Continuation& continuation : continuations) continuation(error_);
}

}  // namespace uniproc
