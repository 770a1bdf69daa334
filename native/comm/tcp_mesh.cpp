#include "comm/tcp_mesh.h"

#include <sys/uio.h>

#include <utility>

#include "base/error.h"
#include "comm/peer_lost.h"

namespace uniproc {
namespace {

// The parts of a header and its data that remain after `moved` bytes.
struct Parts {
  iovec parts[2];
  int count = 0;

  Parts(void* header, size_t headerBytes, void* data, size_t bytes, size_t moved) {
    if (moved < headerBytes) {
      parts[count++] = {static_cast<std::byte*>(header) + moved, headerBytes - moved};
      moved = headerBytes;
    }
    const size_t past = moved - headerBytes;
    if (past < bytes) parts[count++] = {static_cast<std::byte*>(data) + past, bytes - past};
  }
};

}  // namespace

std::string CollectiveCall::name() const {
  constexpr const char* kTypes[] = {"int64", "float32", "float16", "bfloat16"};
  constexpr const char* kOps[] = {"sum", "min", "max"};
  const auto inRange = [](auto value, size_t size) { return static_cast<size_t>(value) < size; };
  const std::string elements = " of " + std::to_string(count) + " " +
                               (inRange(type, 4) ? kTypes[static_cast<size_t>(type)] : "unknown");
  switch (kind) {
    case Kind::kAllReduce:
      return std::string("allReduce (") +
             (inRange(op, 3) ? kOps[static_cast<size_t>(op)] : "unknown") + ")" + elements;
    case Kind::kAllGather:
      return "allGather" + elements;
    case Kind::kBroadcast:
      return "broadcast from rank " + std::to_string(root) + elements;
    case Kind::kBarrier:
      return "barrier";
    default:
      return "an unknown collective";
  }
}

short TcpMesh::Peer::events() const {
  return static_cast<short>((in ? POLLIN : 0) | (out ? POLLOUT : 0));
}

TcpMesh::TcpMesh(int32_t rank, std::vector<Socket> sockets, const AbortSignal& abort)
    : rank_(rank), abort_(abort) {
  for (Socket& socket : sockets) {
    peers_.push_back({static_cast<int32_t>(peers_.size()), std::move(socket), {}, {}});
  }
}

void TcpMesh::send(int32_t rank, const void* data, size_t bytes) {
  peers_[rank].out = {{}, static_cast<const std::byte*>(data), bytes, 0};
}

void TcpMesh::receive(int32_t rank, void* data, size_t bytes) {
  peers_[rank].in = {{}, static_cast<std::byte*>(data), bytes, 0};
}

void TcpMesh::exchange(const CollectiveCall& call, const Deadline& deadline) {
  call_ = call;
  ++sequence_;
  waiting_.clear();
  for (Peer& peer : peers_) {
    if (peer.out) peer.out->header = {sequence_, call};
    if (peer.events() != 0) waiting_.push_back(&peer);
  }
  // Try every peer first, because most messages are small and some have arrived; then poll.
  for (Peer* peer : waiting_) advance(*peer);
  for (;;) {
    std::erase_if(waiting_, [](const Peer* peer) { return peer->events() == 0; });
    if (waiting_.empty()) return;
    polled_.clear();
    for (const Peer* peer : waiting_) polled_.push_back({peer->socket.fd(), peer->events(), 0});
    abort_.poll(polled_, deadline.at());
    if (deadline.isPast()) {
      throwPeerLost(*waiting_.front(), "it did not call " + call.name() + " " + deadline.within());
    }
    for (size_t i = 0; i < waiting_.size(); ++i) {
      if (polled_[i].revents != 0) advance(*waiting_[i]);
    }
  }
}

// Reads first, so that a failure notice sent before the connection ended is seen before a write
// error.
void TcpMesh::advance(Peer& peer) {
  if (peer.in) advanceIn(peer);
  if (peer.out) advanceOut(peer);
}

void TcpMesh::advanceIn(Peer& peer) {
  Transfer<std::byte>& in = *peer.in;
  const Parts parts(&in.header, sizeof in.header, in.data, in.bytes, in.moved);
  const Socket::Moved moved = peer.socket.receive(parts.parts, parts.count);
  if (moved.ended) throwPeerLost(peer, "its connection closed");
  if (moved.error != 0) throwPeerLost(peer, describeError("its connection broke", moved.error));
  const bool hadHeader = in.moved >= sizeof in.header;
  in.moved += moved.bytes;
  if (!hadHeader && in.moved >= sizeof in.header) check(peer, in.header);
  if (in.left() == 0) peer.in.reset();
}

void TcpMesh::advanceOut(Peer& peer) {
  Transfer<const std::byte>& out = *peer.out;
  const Parts parts(&out.header, sizeof out.header, const_cast<std::byte*>(out.data), out.bytes,
                    out.moved);
  const Socket::Moved moved = peer.socket.send(parts.parts, parts.count);
  if (moved.error != 0) throwPeerLost(peer, describeError("its connection broke", moved.error));
  out.moved += moved.bytes;
  if (out.left() == 0) peer.out.reset();
}

void TcpMesh::check(const Peer& peer, const Header& received) const {
  if (received.call.kind == CollectiveCall::Kind::kFailure) {
    if (received.call.root == peer.rank) throw PeerLost(peer.rank, "it failed");
    throw PeerLost(received.call.root, "rank " + std::to_string(peer.rank) + " reported it lost");
  }
  if (received == Header{sequence_, call_}) return;
  const auto name = [](const Header& header) {
    return header.call.name() + " (exchange " + std::to_string(header.sequence) + ")";
  };
  throw Error("COMMUNICATOR_FAILED", "ranks call different collectives: rank " +
                                         std::to_string(peer.rank) + " calls " + name(received) +
                                         " where this rank calls " + name({sequence_, call_}));
}

void TcpMesh::throwPeerLost(const Peer& peer, const std::string& reason) const {
  if (!peer.in || peer.in->moved == 0) {  // a failure notice may arrive next
    Header header;
    const iovec part = {&header, sizeof header};
    const bool isWhole = peer.socket.receive(&part, 1).bytes == sizeof header;
    if (isWhole && header.call.kind == CollectiveCall::Kind::kFailure) check(peer, header);
  }
  throw PeerLost(peer.rank, reason);
}

void TcpMesh::notifyFailure(int32_t lost) noexcept {
  Header header;
  header.call.kind = CollectiveCall::Kind::kFailure;
  header.call.root = lost;
  const iovec part = {&header, sizeof header};
  for (Peer& peer : peers_) {
    if (!peer.socket) continue;
    const bool canSend = !peer.out || peer.out->moved == 0;  // not within a message
    const bool isSent = canSend && peer.socket.send(&part, 1).bytes == sizeof header;
    // If the notice could not be sent, closing the connection reports this rank as lost. For
    // another rank it would report the wrong one, and that rank's own connection shows the loss.
    if (!isSent && lost == rank_) peer.socket = Socket();
  }
}

}  // namespace uniproc
