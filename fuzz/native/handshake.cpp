// Bytes of unauthenticated clients at a rank's port, and other ranks' addresses: the right peer is
// connected, or there is a typed error. The first byte of a case selects.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/abort_signal.h"
#include "comm/deadline.h"
#include "comm/peer_lost.h"
#include "comm/tcp_handshake.h"

namespace {

using uniproc::AbortSignal;
using uniproc::Deadline;
using uniproc::Error;
using uniproc::Socket;
using uniproc::TcpHandshake;
using Bytes = std::vector<std::byte>;

constexpr int32_t kWorldSize = 2;
constexpr int64_t kTimeout = 10'000;  // milliseconds
constexpr size_t kTokenAt = 8;
constexpr size_t kPortAt = 24;
constexpr size_t kGreetingBytes = 28;

void require(bool condition) {
  if (!condition) std::abort();
}

// Connects to this loopback port and sends `bytes`. Closed without a FIN, so that the port is freed
// at once.
class Caller {
 public:
  Caller(uint16_t port, const void* bytes, size_t count) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const linger reset = {1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    require(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
    if (count > 0) require(send(fd_, bytes, count, MSG_NOSIGNAL) == static_cast<ssize_t>(count));
  }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;
  ~Caller() { close(fd_); }

  int fd() const { return fd_; }

 private:
  int fd_;
};

uint16_t portOf(const Bytes& address) {
  uint16_t port = 0;
  std::memcpy(&port, address.data() + kPortAt, sizeof port);
  return port;
}

// A greeting as in tcp_handshake.cpp: 8 bytes of magic, the rank, the token of the greeted rank.
Bytes greetingOf(const Bytes& address, int32_t from) {
  Bytes greeting(kGreetingBytes);
  std::memcpy(greeting.data(), address.data(), 8);
  std::memcpy(greeting.data() + 8, &from, sizeof from);
  std::memcpy(greeting.data() + 12, address.data() + kTokenAt, 16);
  return greeting;
}

// Unauthenticated clients connect, the last with a changed greeting, then rank 1 correctly: rank 0
// is connected to the first with a valid greeting.
void greet(const uint8_t* data, size_t size) {
  TcpHandshake handshake(0, kWorldSize);
  const Bytes own = handshake.address();
  Bytes other = own;
  const AbortSignal abort;
  const Bytes right = greetingOf(own, 1);

  Bytes changed = right;
  for (size_t i = 0; i < std::min(size, changed.size()); ++i) changed[i] ^= std::byte{data[i]};
  if (size > changed.size()) {
    const auto* more = reinterpret_cast<const std::byte*>(data);
    changed.insert(changed.end(), more + changed.size(), more + size);
  }
  const size_t count = size > 0 && data[size - 1] % 4 == 0 ? size % changed.size() : changed.size();
  const bool isRight =
      count >= right.size() && std::equal(right.begin(), right.end(), changed.begin());
  const Caller raw(portOf(own), data, size);
  const Caller stranger(portOf(own), changed.data(), count);
  const Caller peer(portOf(own), right.data(), right.size());
  const std::vector<Socket> sockets = handshake.connect({own, other}, abort, Deadline(kTimeout));

  require(sockets.size() == kWorldSize && !sockets[0] && sockets[1]);
  char reply[kGreetingBytes];
  const Caller& met = isRight ? stranger : peer;
  require(recv(met.fd(), reply, sizeof reply, MSG_WAITALL) == kGreetingBytes);
  require(std::memcmp(reply, "uniproc1", 8) == 0);
}

// The case is rank 1's address of rank 0; the deadline to connect has passed.
void parse(const uint8_t* data, size_t size) {
  static TcpHandshake handshake(1, kWorldSize);
  static const AbortSignal abort;
  const Bytes own = handshake.address();
  Bytes other = own;
  for (size_t i = 0; i < std::min(size, other.size()); ++i) other[i] ^= std::byte{data[i]};
  if (size > other.size()) other.resize(size);
  if (size > 0 && data[size - 1] % 4 == 0) other.resize(size);
  const int64_t timeout = 0;
  try {
    handshake.connect({other, own}, abort, Deadline(timeout));
    require(false);
  } catch (const Error& error) {
    require(error.code() == "COMMUNICATOR_FAILED" || error.code() == "PEER_LOST");
    require(error.what()[0] != '\0');
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Otherwise libFuzzer's alarm interrupts a blocking connect, which then fails with EINTR.
  static const int restarted = siginterrupt(SIGALRM, 0);
  require(restarted == 0);
  if (size == 0 || size > 4096) return -1;
  if (data[0] % 16 == 0) {
    greet(data + 1, size - 1);
  } else {
    parse(data + 1, size - 1);
  }
  return 0;
}
