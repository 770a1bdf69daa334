#pragma once

#include <functional>

namespace uniproc {

// An object with its own thread, which ends in two steps so that no caller waits for its work:
// `join` does not block once `stopped` was called.
class Stoppable {
 public:
  virtual ~Stoppable() = default;
  // Lets the thread finish its queue and end; it calls `stopped` last. Does not block. Only the
  // first call has an effect.
  virtual void stop(std::function<void()> stopped) = 0;
  // Lets the thread end as soon as possible, before or after `stop`. Does not block.
  virtual void abandon() = 0;
  virtual void join() = 0;
};

}  // namespace uniproc
