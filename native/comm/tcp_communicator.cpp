#include "comm/tcp_communicator.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "base/error.h"
#include "comm/peer_lost.h"
#include "comm/reduce.h"

namespace uniproc {
namespace {

// Sums of at most this size use the one-shot algorithm, which is faster for them.
constexpr int64_t kMaxOneShotBytes = int64_t{64} << 10;
// The two-shot algorithm works on slices of this size, which bounds its memory.
constexpr int64_t kSliceBytes = int64_t{1} << 20;

using Kind = CollectiveCall::Kind;

}  // namespace

TcpCommunicator::TcpCommunicator(const CommunicatorConfig& config) : config_(config) {
  for (int32_t other = 0; other < worldSize(); ++other) {
    if (other != rank()) others_.push_back(other);
  }
}

template <typename Body>
void TcpCommunicator::failOnError(const Body& body) {
  if (failure_) std::rethrow_exception(failure_);
  try {
    abort_.check();
    body(Deadline(config_.timeout));
  } catch (const PeerLost& error) {
    fail(error.rank().value_or(rank()));
    throw;
  } catch (...) {
    fail(rank());
    throw;
  }
}

void TcpCommunicator::fail(int32_t lost) noexcept {
  failure_ = std::current_exception();
  handshake_.reset();
  if (mesh_) mesh_->notifyFailure(lost);
}

void TcpCommunicator::requireNotConnected() const {
  if (mesh_ && !failure_) {
    throw Error("INVALID_STATE", "the communicator is already connected");
  }
}

std::vector<std::byte> TcpCommunicator::address() {
  requireNotConnected();
  std::vector<std::byte> address;
  failOnError([&](const Deadline&) {
    if (!handshake_) handshake_.emplace(rank(), worldSize());
    address = handshake_->address();
  });
  return address;
}

void TcpCommunicator::connect(const std::vector<std::vector<std::byte>>& addresses) {
  requireNotConnected();
  if (!handshake_ && !failure_) {
    throw Error("INVALID_STATE", "the communicator has no address yet; call address first");
  }
  failOnError([&](const Deadline& deadline) {
    mesh_.emplace(rank(), handshake_->connect(addresses, abort_, deadline), abort_);
    handshake_.reset();
    exchangeEmpty(deadline);
  });
}

template <typename Body>
void TcpCommunicator::collective(const Body& body) {
  if (!mesh_ && !failure_) {
    throw Error("INVALID_STATE", "the communicator is not connected; call connect first");
  }
  failOnError(body);
}

void TcpCommunicator::allReduce(void* data, int64_t count, CommType type, ReduceOp op) {
  collective([&](const Deadline& deadline) {
    const CollectiveCall call{.kind = Kind::kAllReduce, .type = type, .op = op, .count = count};
    const auto size = static_cast<int64_t>(sizeOf(type));
    const int64_t slice = kSliceBytes / size;
    for (int64_t first = 0; first < count; first += slice) {
      auto* from = static_cast<std::byte*>(data) + first * size;
      const int64_t sliceCount = std::min(slice, count - first);
      if (sliceCount * size <= kMaxOneShotBytes) {
        reduceOneShot(from, sliceCount, call, deadline);
      } else {
        reduceTwoShot(from, sliceCount, call, deadline);
      }
    }
  });
}

// One-shot: every rank gathers all ranks' data and reduces it.
void TcpCommunicator::reduceOneShot(std::byte* data, int64_t count, const CollectiveCall& call,
                                    const Deadline& deadline) {
  const size_t bytes = static_cast<size_t>(count) * sizeOf(call.type);
  received_.resize(std::max(received_.size(), bytes * worldSize()));
  for (const int32_t other : others_) {
    mesh_->send(other, data, bytes);
    mesh_->receive(other, received_.data() + other * bytes, bytes);
  }
  mesh_->exchange(call, deadline);
  reduceReceived(data, count, call);
}

// Two-shot: every rank gathers one part of all ranks' data, reduces it, and sends the result to
// all.
void TcpCommunicator::reduceTwoShot(std::byte* data, int64_t count, const CollectiveCall& call,
                                    const Deadline& deadline) {
  const auto size = static_cast<int64_t>(sizeOf(call.type));
  const auto part = [&](int64_t of) {
    const int64_t begin = count * of / worldSize();
    const int64_t end = count * (of + 1) / worldSize();
    return std::span(data + begin * size, static_cast<size_t>((end - begin) * size));
  };
  const std::span<std::byte> own = part(rank());
  received_.resize(std::max(received_.size(), own.size() * worldSize()));
  for (const int32_t other : others_) {
    mesh_->send(other, part(other).data(), part(other).size());
    mesh_->receive(other, received_.data() + other * own.size(), own.size());
  }
  mesh_->exchange(call, deadline);
  reduceReceived(own.data(), static_cast<int64_t>(own.size()) / size, call);

  for (const int32_t other : others_) {
    mesh_->send(other, own.data(), own.size());
    mesh_->receive(other, part(other).data(), part(other).size());
  }
  mesh_->exchange(call, deadline);
}

void TcpCommunicator::reduceReceived(std::byte* own, int64_t count, const CollectiveCall& call) {
  const size_t bytes = static_cast<size_t>(count) * sizeOf(call.type);
  sources_.resize(worldSize());
  for (const int32_t other : others_) sources_[other] = received_.data() + other * bytes;
  sources_[rank()] = own;
  reduce(sources_, count, call.type, call.op, own);
}

void TcpCommunicator::allGather(const void* in, void* out, int64_t count, CommType type) {
  collective([&](const Deadline& deadline) {
    const size_t bytes = static_cast<size_t>(count) * sizeOf(type);
    auto* to = static_cast<std::byte*>(out);
    for (const int32_t other : others_) {
      mesh_->send(other, in, bytes);
      mesh_->receive(other, to + other * bytes, bytes);
    }
    if (bytes > 0) std::memcpy(to + rank() * bytes, in, bytes);
    mesh_->exchange({.kind = Kind::kAllGather, .type = type, .count = count}, deadline);
  });
}

void TcpCommunicator::broadcast(void* data, int64_t count, CommType type, int32_t root) {
  collective([&](const Deadline& deadline) {
    const size_t bytes = static_cast<size_t>(count) * sizeOf(type);
    if (rank() == root) {
      for (const int32_t other : others_) mesh_->send(other, data, bytes);
    } else {
      mesh_->receive(root, data, bytes);
    }
    mesh_->exchange({.kind = Kind::kBroadcast, .type = type, .root = root, .count = count},
                    deadline);
  });
}

void TcpCommunicator::barrier() {
  collective([&](const Deadline& deadline) { exchangeEmpty(deadline); });
}

void TcpCommunicator::exchangeEmpty(const Deadline& deadline) {
  for (const int32_t other : others_) {
    mesh_->send(other, nullptr, 0);
    mesh_->receive(other, nullptr, 0);
  }
  mesh_->exchange({.kind = Kind::kBarrier}, deadline);
}

}  // namespace uniproc
