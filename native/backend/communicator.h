// What the ranks of a group compute together: one interface, made by a backend (Ops) for its own
// memory and in the order of its own operations.
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
  // Milliseconds: to connect in, and for the others to come to a collective.
  int64_t timeout = 0;
  // Small sums by reading the peers' memory directly, where that can be had.
  bool customAllReduce = true;
};

// Memory is the backend's; a collective is enqueued as an operation is, and every rank must make
// the same ones in the same order. All ranks get the same bytes, and the sums of one build and
// layout are the same in every run. What cannot be carried out is Error PEER_LOST (a rank is gone,
// or did not come in time) or COMMUNICATOR_FAILED (this rank cannot take part, and why); from then
// on every call fails with it.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int32_t rank() const = 0;
  virtual int32_t worldSize() const = 0;

  // Two steps to a group: every rank makes an address, of bytes that mean something to the other
  // communicators alone, and is given those of all ranks, by rank.
  virtual std::vector<std::byte> address() = 0;
  virtual void connect(const std::vector<std::vector<std::byte>>& addresses) = 0;

  // Whether small sums, once connected, go through memory that the ranks share: GPUs' alone do.
  virtual bool hasPeerMemory() const { return false; }

  // In place: data [count].
  virtual void allReduce(void* data, int64_t count, CommType type, ReduceOp op) = 0;
  // out [worldSize, count] from in [count] of each rank, by rank. They do not overlap.
  virtual void allGather(const void* in, void* out, int64_t count, CommType type) = 0;
  // data [count] becomes the root's.
  virtual void broadcast(void* data, int64_t count, CommType type, int32_t root) = 0;
  // Returns when every rank has called it and what was enqueued before is done.
  virtual void barrier() = 0;

  // From any thread: whoever waits, on the host or on the device, gives up with PEER_LOST and this
  // reason, and so does every later call. Does not wait.
  virtual void abort(const std::string& reason) noexcept = 0;
};

}  // namespace uniproc
