// A request to stop, passed between threads: std::stop_source, std::stop_token and
// std::stop_callback, which libc++ has only since LLVM 20.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace uniproc {

class StopCallback;

// Copies share one state.
class StopToken {
 public:
  bool stopRequested() const { return state_->requested.load(std::memory_order_acquire); }

 private:
  friend class StopSource;
  friend class StopCallback;

  struct State {
    std::atomic<bool> requested{false};
    std::mutex mutex;  // guards `callbacks`, and is held while one runs
    std::vector<const StopCallback*> callbacks;
  };

  explicit StopToken(std::shared_ptr<State> state) : state_(std::move(state)) {}

  std::shared_ptr<State> state_;
};

// Has `function` called once when a stop is requested, on the requesting thread, or in the
// constructor if that was before. The destructor waits for a call in progress, so `function` may
// use what outlives this object; it must neither throw nor destroy a callback of the same source.
class StopCallback {
 public:
  StopCallback(StopToken token, std::function<void()> function)
      : state_(std::move(token.state_)), function_(std::move(function)) {
    {
      std::lock_guard lock(state_->mutex);
      if (!state_->requested) {
        state_->callbacks.push_back(this);
        return;
      }
    }
    function_();
  }
  ~StopCallback() {
    std::lock_guard lock(state_->mutex);
    std::erase(state_->callbacks, this);
  }
  StopCallback(const StopCallback&) = delete;
  StopCallback& operator=(const StopCallback&) = delete;

 private:
  friend class StopSource;

  const std::shared_ptr<StopToken::State> state_;
  const std::function<void()> function_;
};

class StopSource {
 public:
  StopToken token() const { return StopToken(state_); }
  bool stopRequested() const { return state_->requested.load(std::memory_order_acquire); }

  // Only the first call has an effect.
  void requestStop() {
    std::lock_guard lock(state_->mutex);
    if (state_->requested.exchange(true)) return;
    for (const StopCallback* callback : state_->callbacks) callback->function_();
    state_->callbacks.clear();
  }

 private:
  const std::shared_ptr<StopToken::State> state_ = std::make_shared<StopToken::State>();
};

}  // namespace uniproc
