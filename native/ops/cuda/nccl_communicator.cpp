#include "ops/cuda/nccl_communicator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <span>
#include <utility>

#include "base/error.h"
#include "ops/cuda/cuda_check.h"
#include "ops/cuda/nccl_library.h"

namespace uniproc::cuda {
namespace {

constexpr size_t kWordBytes = 256;
// Milliseconds, for peers that share memory: to wait until they release it, and to connect over
// TCP.
constexpr int64_t kReleaseTimeout = 2000;
constexpr int64_t kConnectTimeout = 10'000;

// What ranks exchange to connect. The address of a TcpHandshake follows if the rank has peer
// memory.
struct Address {
  static constexpr std::array<char, 8> kMagic = {'u', 'n', 'i', 'n', 'c', 'c', 'l', '2'};

  std::array<char, 8> magic = kMagic;
  int32_t ncclVersion = 0;
  int32_t hasPeerMemory = 0;
  std::array<char, 40> host = {};  // boot id of the host's system
  cudaIpcMemHandle_t peerMemory = {};
  nccl::UniqueId id;  // the group uses rank 0's
};
static_assert(std::is_trivially_copyable_v<Address>);

std::array<char, 40> thisHost() {
  std::array<char, 40> host = {};
  std::ifstream("/proc/sys/kernel/random/boot_id").read(host.data(), host.size());
  return host;
}

[[noreturn]] void throwFailed(const std::string& message) {
  throw Error("COMMUNICATOR_FAILED", message);
}

Address toAddress(const std::vector<std::byte>& bytes, size_t rank) {
  Address address;
  if (bytes.size() < sizeof address) {
    throwFailed("the address of rank " + std::to_string(rank) + " has " +
                std::to_string(bytes.size()) + " bytes; a GPU's has " +
                std::to_string(sizeof address) +
                "; run all ranks on GPUs with the same build of uniproc");
  }
  std::memcpy(static_cast<void*>(&address), bytes.data(), sizeof address);
  if (address.magic != Address::kMagic) {
    throwFailed("the address of rank " + std::to_string(rank) +
                " is not a GPU's; run all ranks on GPUs with the same build of uniproc");
  }
  return address;
}

nccl::DataType toNccl(CommType type) {
  switch (type) {
    case CommType::kInt64:
      return nccl::kInt64;
    case CommType::kFloat32:
      return nccl::kFloat32;
    case CommType::kFloat16:
      return nccl::kFloat16;
    default:
      return nccl::kBFloat16;
  }
}

nccl::RedOp toNccl(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return nccl::kSum;
    case ReduceOp::kMin:
      return nccl::kMin;
    default:
      return nccl::kMax;
  }
}

}  // namespace

NcclCommunicator::NcclCommunicator(const CommunicatorConfig& config, int device,
                                   cudaStream_t stream, MemoryAccount& memory)
    : config_(config),
      device_(device),
      stream_(stream),
      memory_(memory),
      group_(std::make_shared<NcclGroup>(config, device)),
      word_(memory.allocate(kWordBytes, "the communicator's barrier")) {}

NcclCommunicator::~NcclCommunicator() {
  const Deadline deadline(kReleaseTimeout);
  try {
    if (connected_) barrier(std::min(config_.timeout, kReleaseTimeout));
  } catch (...) {  // peers are gone; close anyway
  }
  static_cast<void>(cudaStreamSynchronize(stream_));
  if (peers_) peers_->close(deadline);
  group_->close();
  memory_.release(word_, kWordBytes);
}

void NcclCommunicator::abort(const std::string& reason) noexcept {
  abort_.raise(reason);
  group_->abort(reason);
}

template <class Body>
void NcclCommunicator::failOnError(const Body& body) {
  try {
    body();
  } catch (...) {
    group_->fail(std::current_exception());
    throw;
  }
}

std::vector<std::byte> NcclCommunicator::address() {
  group_->throwIfFailed();
  if (hasAddress_) throw Error("INVALID_STATE", "the communicator already has an address");
  std::vector<std::byte> bytes;
  failOnError([&] { bytes = makeAddress(); });
  hasAddress_ = true;
  return bytes;
}

std::vector<std::byte> NcclCommunicator::makeAddress() {
  Address address;
  address.ncclVersion = nccl::library().version;
  address.host = thisHost();
  if (config_.rank == 0) {
    const nccl::Result result = nccl::library().getUniqueId(&address.id);
    if (result != nccl::kSuccess) {
      throwFailed("ncclGetUniqueId failed: " + nccl::describe(result, nullptr));
    }
  }
  if (config_.customAllReduce && config_.worldSize <= PeerAllReduce::kMaxRanks) {
    try {
      peers_.emplace(config_.rank, config_.worldSize, device_, group_->failedWord(), memory_,
                     stream_);
      address.peerMemory = peers_->handle();
      address.hasPeerMemory = 1;
      handshake_.emplace(config_.rank, config_.worldSize);
    } catch (const Error& error) {
      if (error.code() != "DEVICE_FAILED") throw;  // otherwise the driver cannot share memory
    }
  }
  std::vector<std::byte> bytes(sizeof address);
  std::memcpy(bytes.data(), &address, sizeof address);
  if (handshake_) {
    const std::vector<std::byte> meeting = handshake_->address();
    bytes.insert(bytes.end(), meeting.begin(), meeting.end());
  }
  return bytes;
}

void NcclCommunicator::connect(const std::vector<std::vector<std::byte>>& addresses) {
  group_->throwIfFailed();
  if (!hasAddress_)
    throw Error("INVALID_STATE", "the communicator has no address yet; call address first");
  if (connected_) throw Error("INVALID_STATE", "the communicator is already connected");
  failOnError([&] { join(addresses); });
  connected_ = true;
}

void NcclCommunicator::join(const std::vector<std::vector<std::byte>>& addresses) {
  if (addresses.size() != static_cast<size_t>(config_.worldSize)) {
    throwFailed("connect was given " + std::to_string(addresses.size()) +
                " addresses for a world of size " + std::to_string(config_.worldSize));
  }
  std::vector<Address> ranks;
  for (const auto& address : addresses) ranks.push_back(toAddress(address, ranks.size()));
  for (size_t rank = 1; rank < ranks.size(); ++rank) {
    if (ranks[rank].ncclVersion == ranks[0].ncclVersion) continue;
    throwFailed("rank 0 has NCCL " + nccl::versionText(ranks[0].ncclVersion) + " and rank " +
                std::to_string(rank) + " has " + nccl::versionText(ranks[rank].ncclVersion) +
                "; install the same version for all ranks");
  }
  group_->join(ranks[0].id);

  const bool onOneHost = std::all_of(ranks.begin(), ranks.end(), [&](const Address& address) {
    return address.hasPeerMemory && address.host == ranks[0].host;
  });
  // All ranks agree on each step before any continues, so a rank has connected to all ranks that
  // map its memory.
  std::optional<TcpReleaseBarrier> releaseBarrier;
  if (onOneHost && peers_) releaseBarrier = connectPeers(addresses);
  if (onAllRanks(releaseBarrier.has_value())) {
    std::vector<cudaIpcMemHandle_t> handles;
    for (const Address& address : ranks) handles.push_back(address.peerMemory);
    if (!onAllRanks(peers_->map(handles, std::move(*releaseBarrier)))) {
      peers_->close(Deadline(kReleaseTimeout));
      peers_.reset();
    }
  } else {
    peers_.reset();
  }
  handshake_.reset();
  warmUp();
}

// Returns nullopt if a peer cannot be reached over TCP.
std::optional<TcpReleaseBarrier> NcclCommunicator::connectPeers(
    const std::vector<std::vector<std::byte>>& addresses) {
  std::vector<std::vector<std::byte>> meetings;
  for (const auto& address : addresses) {
    meetings.emplace_back(address.begin() + sizeof(Address), address.end());
  }
  try {
    const Deadline deadline(std::min(config_.timeout, kConnectTimeout));
    return TcpReleaseBarrier(handshake_->connect(meetings, abort_, deadline));
  } catch (const Error&) {  // NCCL has other transports
    return std::nullopt;
  }
}

// Returns whether `here` is true on every rank.
bool NcclCommunicator::onAllRanks(bool here) {
  int64_t all = here;
  check(cudaMemcpyAsync(word_, &all, sizeof all, cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
  group_->call("ncclAllReduce", [&](nccl::Comm comm) {
    return nccl::library().allReduce(word_, word_, 1, nccl::kInt64, nccl::kMin, comm, stream_);
  });
  group_->wait(stream_);
  check(cudaMemcpyAsync(&all, word_, sizeof all, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  return all != 0;
}

// Runs each collective once. NCCL connects and allocates on the first use of a transport, which it
// selects by size. Running it here counts that memory before the model is loaded and keeps the
// delay out of steps.
void NcclCommunicator::warmUp() {
  constexpr size_t kBytes = 32 << 20;
  struct Memory {
    MemoryAccount& account;
    void* data;
    ~Memory() { account.release(data, kBytes); }
  } memory{memory_, memory_.allocate(kBytes, "warming up the collectives")};
  auto* data = static_cast<std::byte*>(memory.data);
  const nccl::Library& nccl = nccl::library();
  for (size_t bytes = 4096; bytes <= kBytes / 2; bytes *= 16) {
    const size_t each = bytes / 4 / config_.worldSize;
    group_->call("ncclAllReduce", [&](nccl::Comm comm) {
      return nccl.allReduce(data, data, bytes / 4, nccl::kFloat32, nccl::kSum, comm, stream_);
    });
    group_->call("ncclAllGather", [&](nccl::Comm comm) {
      return nccl.allGather(data, data + kBytes / 2, each, nccl::kFloat32, comm, stream_);
    });
    group_->call("ncclBroadcast", [&](nccl::Comm comm) {
      return nccl.broadcast(data, data, bytes / 4, nccl::kFloat32, 0, comm, stream_);
    });
  }
  group_->wait(stream_);
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

void NcclCommunicator::requireConnected() const {
  group_->throwIfFailed();
  if (!connected_)
    throw Error("INVALID_STATE", "the communicator is not connected; call connect first");
}

void NcclCommunicator::allReduce(void* data, int64_t count, CommType type, ReduceOp op) {
  requireConnected();
  if (count == 0) return;
  if (peers_ && peers_->allReduce(data, count, type, op)) {
    check(cudaGetLastError(), "PeerAllReduce::allReduce");
    return;
  }
  group_->call("ncclAllReduce", [&](nccl::Comm comm) {
    return nccl::library().allReduce(data, data, static_cast<size_t>(count), toNccl(type),
                                     toNccl(op), comm, stream_);
  });
}

bool NcclCommunicator::sumRmsNorm(const void* x, int32_t numTokens, const NormOfSum& norm,
                                  DType type) {
  requireConnected();
  if (!peers_ || numTokens == 0 || !peers_->sumRmsNorm(x, numTokens, norm, type)) return false;
  check(cudaGetLastError(), "PeerAllReduce::sumRmsNorm");
  return true;
}

void NcclCommunicator::allGather(const void* in, void* out, int64_t count, CommType type) {
  requireConnected();
  if (count == 0) return;
  group_->call("ncclAllGather", [&](nccl::Comm comm) {
    return nccl::library().allGather(in, out, static_cast<size_t>(count), toNccl(type), comm,
                                     stream_);
  });
}

void NcclCommunicator::broadcast(void* data, int64_t count, CommType type, int32_t root) {
  requireConnected();
  if (count == 0) return;
  group_->call("ncclBroadcast", [&](nccl::Comm comm) {
    return nccl::library().broadcast(data, data, static_cast<size_t>(count), toNccl(type), root,
                                     comm, stream_);
  });
}

void NcclCommunicator::barrier(int64_t timeout) {
  allReduce(word_, 4, CommType::kFloat32, ReduceOp::kSum);
  group_->wait(stream_, timeout);
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

}  // namespace uniproc::cuda
