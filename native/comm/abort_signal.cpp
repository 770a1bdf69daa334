#include "comm/abort_signal.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <tuple>

#include "base/error.h"
#include "comm/peer_lost.h"

namespace uniproc {

AbortSignal::AbortSignal() { std::tie(pipeOut_, pipeIn_) = openPipe(); }

void AbortSignal::raise(const std::string& reason) noexcept {
  std::lock_guard lock(mutex_);
  if (raised_) return;
  reason_ = reason;
  raised_ = true;
  // The only byte ever written, so the pipe has room for it.
  [[maybe_unused]] const ssize_t written = write(pipeIn_.get(), "", 1);
}

void AbortSignal::check() const {
  if (!raised_) return;
  std::lock_guard lock(mutex_);
  throw PeerLost(std::nullopt, reason_);
}

bool AbortSignal::poll(std::vector<pollfd>& sockets,
                       std::chrono::steady_clock::time_point until) const {
  sockets.push_back({pipeOut_.get(), POLLIN, 0});
  int numReady = 0;
  do {
    check();
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    const auto wait = std::clamp<std::chrono::milliseconds::rep>(left.count(), 0,
                                                                 std::numeric_limits<int>::max());
    numReady = ::poll(sockets.data(), static_cast<nfds_t>(sockets.size()), static_cast<int>(wait));
    if (numReady < 0 && errno != EINTR) {
      throw Error("COMMUNICATOR_FAILED", describeError("waiting for the peers failed", errno));
    }
  } while (numReady < 0);
  check();
  sockets.pop_back();
  return numReady > 0;
}

}  // namespace uniproc
