#include "comm/tcp_handshake.h"

#include <sys/uio.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "comm/peer_lost.h"

namespace uniproc {
namespace {

constexpr size_t kMaxHosts = 16;
// Connections that have not said yet who they are. The oldest makes room: a rank says so at once.
constexpr size_t kMaxCallers = 64;
constexpr std::chrono::milliseconds kRedialInterval{50};

// What both structures below begin with; the last letter is their version.
using Magic = std::array<char, 8>;
constexpr Magic kMagic = {'u', 'n', 'i', 'p', 'r', 'o', 'c', '1'};

}  // namespace

// Both go over the wire as they lie in memory: the processors of a group are of one byte order.

struct TcpHandshake::Address {
  Magic magic;
  Token token;
  uint16_t port;
  uint16_t numHosts;
  std::array<in6_addr, kMaxHosts> hosts;
};

// Rank `from` says it to the rank whose token it is.
struct TcpHandshake::Greeting {
  Magic magic;
  int32_t from;
  Token to;
};

// A connection whose other end has not greeted yet: one that this rank dialed, to one of a rank's
// hosts, or one that somebody called on. The caller greets first.
struct TcpHandshake::Line {
  Socket socket;
  int32_t dialed;  // a rank; -1 for a caller
  bool hasGreeted = false;
  Greeting greeting = {};
  size_t received = 0;

  bool isCaller() const { return dialed < 0; }
  void drop() { socket = Socket(); }

  // A new connection's buffer has room for a greeting.
  bool greet(const Greeting& own) {
    const iovec part = {const_cast<Greeting*>(&own), sizeof own};
    hasGreeted = socket.send(&part, 1).bytes == sizeof own;
    return hasGreeted;
  }
  // Nothing past the greeting is read. False when there will be none.
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
  std::random_device random;
  Token token;
  for (std::byte& byte : token) byte = static_cast<std::byte>(random());
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
                    " bytes, is none that this communicator knows: all ranks must be of one kind "
                    "of device and one version");
  }
  return address;
}

std::vector<Socket> TcpHandshake::connect(const std::vector<std::vector<std::byte>>& addresses,
                                          const AbortSignal& abort, const Deadline& deadline) {
  static_assert(std::has_unique_object_representations_v<Greeting>);
  if (addresses.size() != static_cast<size_t>(worldSize_)) {
    throw Error("COMMUNICATOR_FAILED", "connect was given " + std::to_string(addresses.size()) +
                                           " addresses in a world of " +
                                           std::to_string(worldSize_));
  }
  std::vector<Address> others;
  for (const auto& bytes : addresses) {
    others.push_back(parse(bytes, static_cast<int32_t>(others.size())));
  }
  if (others[rank_].token != token_) {
    throw Error("COMMUNICATOR_FAILED",
                "the address given for rank " + std::to_string(rank_) + " is not its own");
  }
  const auto greetingTo = [&](int32_t rank) { return Greeting{kMagic, rank_, others[rank].token}; };

  std::vector<Socket> peers(worldSize_);
  std::vector<Line> lines;

  // Every rank calls those before it, at all of a rank's hosts at once: which of them can be
  // reached from here, trying alone tells.
  const auto dial = [&] {
    for (int32_t rank = 0; rank < rank_; ++rank) {
      const auto dialsIt = [rank](const Line& line) { return line.dialed == rank; };
      if (peers[rank] || std::any_of(lines.begin(), lines.end(), dialsIt)) continue;
      for (size_t i = 0; i < others[rank].numHosts; ++i) {
        Socket socket = Socket::connect(others[rank].hosts[i], others[rank].port);
        if (socket) lines.push_back({std::move(socket), rank});
      }
    }
  };
  const auto acceptCallers = [&] {
    for (size_t i = 0; i < kMaxCallers; ++i) {
      Socket socket = listener_.accept();
      if (!socket) break;
      lines.push_back({std::move(socket), -1});
    }
    auto numCallers = static_cast<size_t>(std::count_if(
        lines.begin(), lines.end(), [](const Line& line) { return line.isCaller(); }));
    for (Line& line : lines) {
      if (numCallers <= kMaxCallers) break;
      if (!line.isCaller()) continue;
      line.drop();
      --numCallers;
    }
  };
  // Whether `line` is from now on the one to its rank: the first that both have greeted on.
  const auto isMet = [&](Line& line) {
    const Greeting& greeting = line.greeting;
    if (greeting.magic != kMagic || greeting.to != token_) return false;
    if (!line.isCaller()) return greeting.from == line.dialed && !peers[greeting.from];
    return greeting.from > rank_ && greeting.from < worldSize_ && !peers[greeting.from] &&
           line.greet(greetingTo(greeting.from));
  };
  const auto advance = [&](Line& line) {
    if (!line.isCaller() && !line.hasGreeted) {
      if (!line.socket.isConnected() || !line.greet(greetingTo(line.dialed))) line.drop();
    } else if (!line.receive()) {
      line.drop();
    } else if (line.isComplete()) {
      if (isMet(line)) peers[line.greeting.from] = std::move(line.socket);
      line.drop();
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
      redial = Deadline::Clock::now() + kRedialInterval;
    }
    polled.clear();
    for (const Line& line : lines) {
      const bool greets = !line.isCaller() && !line.hasGreeted;
      polled.push_back({line.socket.fd(), static_cast<short>(greets ? POLLOUT : POLLIN), 0});
    }
    polled.push_back({listener_.fd(), POLLIN, 0});
    if (!abort.poll(polled, dials ? std::min(redial, deadline.at()) : deadline.at())) continue;
    for (size_t i = 0; i < lines.size(); ++i) {
      if (polled[i].revents != 0) advance(lines[i]);
    }
    if (polled.back().revents != 0) acceptCallers();
    std::erase_if(lines, [&](const Line& line) {
      return !line.socket || (!line.isCaller() && peers[line.dialed]);
    });
  }
}

}  // namespace uniproc
