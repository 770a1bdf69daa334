#include "comm/tcp_release_barrier.h"

#include <sys/uio.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>

namespace uniproc {
namespace {

bool hasEnded(const Socket& socket) {
  std::byte unexpected;
  const iovec part = {&unexpected, sizeof unexpected};
  const Socket::Moved moved = socket.receive(&part, 1);
  return moved.ended || moved.error != 0;
}

}  // namespace

TcpReleaseBarrier::TcpReleaseBarrier(std::vector<Socket> sockets) : waiting_(std::move(sockets)) {
  std::erase_if(waiting_, [](const Socket& socket) { return !socket; });
  polled_.resize(waiting_.size());
}

void TcpReleaseBarrier::announceRelease() noexcept {
  for (const Socket& socket : waiting_) socket.endSending();
}

bool TcpReleaseBarrier::waitForPeers(const Deadline& deadline) noexcept {
  using std::chrono::milliseconds;
  for (;;) {
    std::erase_if(waiting_, hasEnded);
    if (waiting_.empty()) return true;
    const auto left = std::chrono::ceil<milliseconds>(deadline.at() - Deadline::Clock::now());
    if (left <= milliseconds::zero()) return false;
    std::transform(waiting_.begin(), waiting_.end(), polled_.begin(),
                   [](const Socket& socket) { return pollfd{socket.fd(), POLLIN, 0}; });
    // Waits in slices of one second, because `poll` takes an int.
    const auto wait = std::min(left, milliseconds(1000));
    static_cast<void>(poll(polled_.data(), waiting_.size(), static_cast<int>(wait.count())));
  }
}

}  // namespace uniproc
