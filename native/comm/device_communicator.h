// A communicator that belongs to a device: the device's thread creates, uses and destroys it; any
// thread may abort it. Implements NativeCommunicator of lib/native/index.ts.
#pragma once

#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "backend/communicator.h"
#include "backend/resident.h"
#include "base/stop_token.h"

namespace uniproc {

class DeviceCommunicator : public Resident {
 public:
  // Abandoning the device aborts the communicator, so that the device's thread does not wait for a
  // peer. Throws Error CONFIG_INVALID for a rank outside the world or a timeout that is not
  // positive.
  DeviceCommunicator(const CommunicatorConfig& config, StopToken abandoned);

  // Callable on any thread, also before `open`.
  int32_t rank() const { return config_.rank; }
  int32_t worldSize() const { return config_.worldSize; }

  // Except for `abort`, the methods below run on the device's thread. `open` creates the backend's
  // communicator; if that fails, `get` rethrows the error. `get` throws INVALID_STATE before `open`
  // and SHUT_DOWN after `release`.
  void open(Backend& backend);
  Communicator& get();
  void release() noexcept override;

  // Callable on any thread at any time; see Communicator::abort.
  void abort(const std::string& reason) noexcept;

 private:
  const CommunicatorConfig config_;
  std::mutex mutex_;  // guards the three members below, which `abort` uses
  std::unique_ptr<Communicator> communicator_;
  std::exception_ptr unavailableError_;
  std::optional<std::string> aborted_;
  StopCallback abandonCallback_;
};

}  // namespace uniproc
