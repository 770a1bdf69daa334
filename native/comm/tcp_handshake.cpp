#include "comm/tcp_handshake.h"

#include <sys/random.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "comm/peer_lost.h"

namespace uniproc {
namespace {

constexpr size_t kMaxHosts = 16;
// Limit of connections that have not sent a greeting. Ranks greet at once, so the oldest is
// dropped.
constexpr size_t kMaxPendingConnections = 64;
constexpr std::chrono::milliseconds kReconnectInterval{50};

// Common prefix of both structures below; the last character is the version.
using Magic = std::array<char, 8>;
constexpr Magic kMagic = {'u', 'n', 'i', 'p', 'r', 'o', 'c', '1'};

}  // namespace

// Sent as raw memory: all processors of a group must have the same byte order.

struct TcpHandshake::Address {
  Magic magic;
  Token token;
  uint16_t port;
  uint16_t numHosts;
  std::array<in6_addr, kMaxHosts> hosts;
};

// Rank `from` sends this with the receiving rank's token.
struct TcpHandshake::Greeting {
  Magic magic;
  int32_t from;
  Token to;
};

// A connection that has not been greeted: either dialed to one of a rank's host addresses, or
// accepted. The dialing side greets first.
struct TcpHandshake::PendingConnection {
  Socket socket;
  int32_t dialed;  // rank, or -1 if accepted
  bool hasGreeted = false;
  Greeting greeting = {};
  size_t received = 0;

  bool isAccepted() const { return dialed < 0; }
  void drop() { socket = Socket(); }

  // A new connection's send buffer always holds a greeting.
  bool greet(const Greeting& own) {
    const iovec part = {const_cast<Greeting*>(&own), sizeof own};
    hasGreeted = socket.send(&part, 1).bytes == sizeof own;
    return hasGreeted;
  }
  // Reads no bytes past the greeting. Returns false if none can arrive.
  bool receive() {
    const iovec part = {reinterpret_cast<std::byte*>(&greeting) + received,
                        sizeof greeting - received};
    const Socket::Moved moved = socket.receive(&part, 1);
    received += moved.bytes;
    return !moved.ended && moved.error == 0;
  }
  bool isComplete() const { return received == sizeof greeting; }
};

TcpHandshake::Token TcpHandshake::randomToken() {
  Token token;
  // Not std::random_device, for which libstdc++ requires glibc 2.36 if it was built with it.
  if (getentropy(token.data(), token.size()) != 0) {
    throw Error("COMMUNICATOR_FAILED",
                std::string("cannot get random bytes from the system: ") + std::strerror(errno));
  }
  return token;
}

TcpHandshake::TcpHandshake(int32_t rank, int32_t worldSize)
    : rank_(rank), worldSize_(worldSize), token_(randomToken()), listener_(Socket::listen()) {}

std::vector<std::byte> TcpHandshake::address() const {
  static_assert(std::has_unique_object_representations_v<Address>);
  const std::vector<in6_addr> hosts = hostAddresses();
  Address address = {kMagic, token_, listener_.port(), 0, {}};
  address.numHosts = static_cast<uint16_t>(std::min(hosts.size(), kMaxHosts));
  std::copy_n(hosts.begin(), address.numHosts, address.hosts.begin());
  const auto* bytes = reinterpret_cast<const std::byte*>(&address);
  return {bytes, bytes + sizeof address};
}

TcpHandshake::Address TcpHandshake::parse(const std::vector<std::byte>& bytes, int32_t rank) const {
  Address address = {};
  if (bytes.size() == sizeof address) std::memcpy(&address, bytes.data(), sizeof address);
  if (address.magic != kMagic || address.numHosts > kMaxHosts) {
    throw Error("COMMUNICATOR_FAILED",
                "the address of rank " + std::to_string(rank) + ", of " +
                    std::to_string(bytes.size()) +
                    " bytes, is not valid here: all ranks must use the same kind of "
                    "device and the same version of uniproc");
  }
  return address;
}

std::vector<Socket> TcpHandshake::connect(const std::vector<std::vector<std::byte>>& addresses,
                                          const AbortSignal& abort, const Deadline& deadline) {
  static_assert(std::has_unique_object_representations_v<Greeting>);
  if (addresses.size() != static_cast<size_t>(worldSize_)) {
    throw Error("COMMUNICATOR_FAILED", "connect was given " + std::to_string(addresses.size()) +
                                           " addresses for a world of size " +
                                           std::to_string(worldSize_));
  }
  std::vector<Address> others;
  for (const auto& bytes : addresses) {
    others.push_back(parse(bytes, static_cast<int32_t>(others.size())));
  }
  if (others[rank_].token != token_) {
    throw Error("COMMUNICATOR_FAILED",
                "the address given for rank " + std::to_string(rank_) +
                    " differs from the one that it returned; pass the addresses in rank order");
  }
  const auto greetingTo = [&](int32_t rank) { return Greeting{kMagic, rank_, others[rank].token}; };

  std::vector<Socket> peers(worldSize_);
  std::vector<PendingConnection> pending;

  // Every rank dials all lower ranks, at all their host addresses at once, because only trying
  // shows which of them is reachable from here.
  const auto dial = [&] {
    for (int32_t rank = 0; rank < rank_; ++rank) {
      const auto dialsIt = [rank](const PendingConnection& connection) {
        return connection.dialed == rank;
      };
      if (peers[rank] || std::any_of(pending.begin(), pending.end(), dialsIt)) continue;
      for (size_t i = 0; i < others[rank].numHosts; ++i) {
        Socket socket = Socket::connect(others[rank].hosts[i], others[rank].port);
        if (socket) pending.push_back({std::move(socket), rank});
      }
    }
  };
  const auto acceptCallers = [&] {
    for (size_t i = 0; i < kMaxPendingConnections; ++i) {
      Socket socket = listener_.accept();
      if (!socket) break;
      pending.push_back({std::move(socket), -1});
    }
    auto numAccepted = static_cast<size_t>(
        std::count_if(pending.begin(), pending.end(),
                      [](const PendingConnection& connection) { return connection.isAccepted(); }));
    for (PendingConnection& connection : pending) {
      if (numAccepted <= kMaxPendingConnections) break;
      if (!connection.isAccepted()) continue;
      connection.drop();
      --numAccepted;
    }
  };
  // Whether `connection` becomes the connection to its rank: the first on which both sides have
  // greeted.
  const auto isEstablished = [&](PendingConnection& connection) {
    const Greeting& greeting = connection.greeting;
    if (greeting.magic != kMagic || greeting.to != token_) return false;
    if (!connection.isAccepted())
      return greeting.from == connection.dialed && !peers[greeting.from];
    return greeting.from > rank_ && greeting.from < worldSize_ && !peers[greeting.from] &&
           connection.greet(greetingTo(greeting.from));
  };
  const auto advance = [&](PendingConnection& connection) {
    if (!connection.isAccepted() && !connection.hasGreeted) {
      if (!connection.socket.isConnected() || !connection.greet(greetingTo(connection.dialed)))
        connection.drop();
    } else if (!connection.receive()) {
      connection.drop();
    } else if (connection.isComplete()) {
      if (isEstablished(connection)) peers[connection.greeting.from] = std::move(connection.socket);
      connection.drop();
    }
  };

  Deadline::Clock::time_point redial;
  std::vector<pollfd> polled;
  for (;;) {
    int32_t missing = 0;
    while (missing < worldSize_ && (missing == rank_ || peers[missing])) ++missing;
    if (missing == worldSize_) return peers;
    if (deadline.isPast()) throw PeerLost(missing, "it did not connect " + deadline.within());

    const bool dials = missing < rank_;
    if (dials && Deadline::Clock::now() >= redial) {
      dial();
      redial = Deadline::Clock::now() + kReconnectInterval;
    }
    polled.clear();
    for (const PendingConnection& connection : pending) {
      const bool greets = !connection.isAccepted() && !connection.hasGreeted;
      polled.push_back({connection.socket.fd(), static_cast<short>(greets ? POLLOUT : POLLIN), 0});
    }
    polled.push_back({listener_.fd(), POLLIN, 0});
    if (!abort.poll(polled, dials ? std::min(redial, deadline.at()) : deadline.at())) continue;
    for (size_t i = 0; i < pending.size(); ++i) {
      if (polled[i].revents != 0) advance(pending[i]);
    }
    if (polled.back().revents != 0) acceptCallers();
    std::erase_if(pending, [&](const PendingConnection& connection) {
      return !connection.socket || (!connection.isAccepted() && peers[connection.dialed]);
    });
  }
}

}  // namespace uniproc
