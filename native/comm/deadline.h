#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>

namespace uniproc {

// The end of a wait of at most `timeout` milliseconds from now.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Deadline(int64_t timeout)
      : timeout_(timeout),
        at_(Clock::now() + std::chrono::milliseconds(std::min(timeout, kYear))) {}

  Clock::time_point at() const { return at_; }
  bool isPast() const { return Clock::now() >= at_; }
  std::string within() const { return "within " + std::to_string(timeout_) + " ms"; }

 private:
  static constexpr int64_t kYear = int64_t{365} * 24 * 3600 * 1000;

  int64_t timeout_;
  Clock::time_point at_;
};

}  // namespace uniproc
