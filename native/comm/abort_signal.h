#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <vector>

#include "comm/socket.h"

namespace uniproc {

// A signal that any thread raises once to interrupt waits in `poll` on another thread.
class AbortSignal {
 public:
  // Throws Error COMMUNICATOR_FAILED.
  AbortSignal();

  // Does not block. The first reason is kept.
  void raise(const std::string& reason) noexcept;
  // Throws PeerLost with the reason if the signal was raised.
  void check() const;

  // Waits for one of `sockets` to become ready; returns false if none is by `until`. Throws as
  // `check`.
  bool poll(std::vector<pollfd>& sockets, std::chrono::steady_clock::time_point until) const;

 private:
  std::atomic<bool> raised_{false};
  mutable std::mutex mutex_;  // guards reason_
  std::string reason_;
  // Readable once the signal is raised.
  FileDescriptor pipeOut_;
  FileDescriptor pipeIn_;
};

}  // namespace uniproc
