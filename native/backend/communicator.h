// Collectives among the ranks of a group. A backend implements them on its own memory, in the order
// of its operations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace uniproc {

enum class CommType : uint8_t { kInt64, kFloat32, kFloat16, kBFloat16 };
enum class ReduceOp : uint8_t { kSum, kMin, kMax };

constexpr size_t sizeOf(CommType type) {
  switch (type) {
    case CommType::kInt64:
      return 8;
    case CommType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

struct CommunicatorConfig {
  int32_t rank = 0;
  int32_t worldSize = 1;
  // Milliseconds: the limit for connecting, and for the peers to join a collective.
  int64_t timeout = 0;
  // Reduce small sums by reading peer GPU memory directly, where supported.
  bool customAllReduce = true;
};

// Data is the backend's memory. A collective is enqueued like an operation, and all ranks must call
// the same ones in the same order. All ranks get the same bytes; for one build and layout, sums are
// reproducible. Throws Error PEER_LOST (a rank ended or missed the deadline) or COMMUNICATOR_FAILED
// (this rank cannot take part); every later call throws the same error.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int32_t rank() const = 0;
  virtual int32_t worldSize() const = 0;

  // Connecting takes two calls: `address` returns opaque bytes, and `connect` takes the addresses
  // of all ranks, by rank.
  virtual std::vector<std::byte> address() = 0;
  virtual void connect(const std::vector<std::vector<std::byte>>& addresses) = 0;

  // Whether small sums use memory shared between the ranks (GPUs only); known once connected.
  virtual bool hasPeerMemory() const { return false; }

  // In place on data [count].
  virtual void allReduce(void* data, int64_t count, CommType type, ReduceOp op) = 0;
  // out [worldSize, count] = in [count] of each rank, by rank. `in` and `out` must not overlap.
  virtual void allGather(const void* in, void* out, int64_t count, CommType type) = 0;
  // data [count] becomes a copy of the root's.
  virtual void broadcast(void* data, int64_t count, CommType type, int32_t root) = 0;
  // Returns when every rank has called it and all earlier operations have run.
  virtual void barrier() = 0;

  // Callable on any thread; does not block. Current waits, on the host and on the device, and all
  // later calls fail with PEER_LOST and this reason.
  virtual void abort(const std::string& reason) noexcept = 0;
};

}  // namespace uniproc
