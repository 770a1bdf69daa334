// A peer's bytes in an exchange: its data if the header is right, else a typed error.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/abort_signal.h"
#include "comm/deadline.h"
#include "comm/peer_lost.h"
#include "comm/tcp_mesh.h"

namespace {

using uniproc::AbortSignal;
using uniproc::CollectiveCall;
using uniproc::CommType;
using uniproc::Deadline;
using uniproc::Error;
using uniproc::ReduceOp;
using uniproc::Socket;
using uniproc::TcpMesh;

constexpr int64_t kTimeout = 10'000;  // milliseconds
constexpr size_t kHeaderBytes = sizeof(uint64_t) + sizeof(CollectiveCall);
constexpr size_t kDataBytes = 40;
constexpr int32_t kWorldSize = 3;

void require(bool condition) {
  if (!condition) std::abort();
}

// A Socket on one end of a pair; the other end is `peer`.
Socket paired(int& peer) {
  int ends[2];
  require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
  Socket socket = Socket::listen();
  require(dup2(ends[0], socket.fd()) >= 0);
  close(ends[0]);
  peer = ends[1];
  return socket;
}

struct Wire {
  uint64_t sequence;
  CollectiveCall call;
};
static_assert(sizeof(Wire) == kHeaderBytes);

CollectiveCall callOf(uint8_t choice) {
  CollectiveCall call;
  call.kind = static_cast<CollectiveCall::Kind>(choice % 4);
  call.type = static_cast<CommType>(choice / 4 % 4);
  call.op = static_cast<ReduceOp>(choice / 16 % 3);
  call.count = kDataBytes / static_cast<int64_t>(uniproc::sizeOf(call.type));
  return call;
}

}  // namespace

// A case: this rank's call; for each exchange, how the bytes differ from the right ones; then
// whether the peer closes the connection early.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2 || size > 1024) return -1;
  const CollectiveCall call = callOf(data[0]);
  const int numExchanges = 1 + data[1] % 3;
  data += 2;
  size -= 2;

  int peer = -1;
  std::vector<Socket> sockets(kWorldSize);
  sockets[1] = paired(peer);
  int silent = -1;
  sockets[2] = paired(silent);

  std::vector<std::byte> stream;
  for (uint64_t sequence = 1; sequence <= static_cast<uint64_t>(numExchanges); ++sequence) {
    const Wire wire = {sequence, call};
    const auto* header = reinterpret_cast<const std::byte*>(&wire);
    stream.insert(stream.end(), header, header + sizeof wire);
    for (size_t i = 0; i < kDataBytes; ++i) stream.push_back(static_cast<std::byte>(i + sequence));
  }
  const std::vector<std::byte> right = stream;
  for (size_t i = 0; i < std::min(size, stream.size()); ++i) stream[i] ^= std::byte{data[i]};
  if (size > stream.size()) {
    const auto* more = reinterpret_cast<const std::byte*>(data);
    stream.insert(stream.end(), more + stream.size(), more + size);
  }
  if (size > 0 && data[size - 1] % 4 == 0) stream.resize(size % (stream.size() + 1));
  require(write(peer, stream.data(), stream.size()) == static_cast<ssize_t>(stream.size()));
  shutdown(peer, SHUT_WR);

  const AbortSignal abort;
  TcpMesh mesh(0, std::move(sockets), abort);
  std::byte out[kDataBytes] = {};
  std::byte in[kDataBytes];
  size_t at = 0;
  try {
    for (int exchange = 0; exchange < numExchanges; ++exchange) {
      mesh.send(1, out, sizeof out);
      mesh.receive(1, in, sizeof in);
      mesh.exchange(call, Deadline(kTimeout));
      // The right header, followed by the peer's data.
      require(std::memcmp(stream.data() + at, right.data() + at, kHeaderBytes) == 0);
      require(std::memcmp(stream.data() + at + kHeaderBytes, in, kDataBytes) == 0);
      at += kHeaderBytes + kDataBytes;
    }
  } catch (const Error& error) {
    require(error.code() == "COMMUNICATOR_FAILED" || error.code() == "PEER_LOST");
    require(error.what()[0] != '\0');
    mesh.notifyFailure(1);
  }
  close(peer);
  close(silent);
  return 0;
}
