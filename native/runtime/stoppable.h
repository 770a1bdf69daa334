#pragma once

#include <functional>

namespace uniproc {

// What has a thread of its own. The thread is ended in two steps, so that whoever asks for it need
// not wait for its work: `join` once it has called `stopped` does not block.
class Stoppable {
 public:
  virtual ~Stoppable() = default;
  // Has the thread finish what it was given and end; `stopped` is its last act. Does not wait. Only
  // the first call counts.
  virtual void stop(std::function<void()> stopped) = 0;
  // Has the thread end as soon as it can, before or after `stop`. Does not wait.
  virtual void abandon() = 0;
  virtual void join() = 0;
};

}  // namespace uniproc
