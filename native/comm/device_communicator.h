// A communicator that lives on a device: made, used and dropped by the device's thread, and given
// up from any; NativeCommunicator of lib/native/index.ts.
#pragma once

#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>

#include "comm/communicator.h"
#include "runtime/device_thread.h"

namespace uniproc {

class DeviceCommunicator : public Resident {
 public:
  // A device that is abandoned gives its communicator up, so that its thread waits for no peer.
  // Throws Error CONFIG_INVALID when the config contradicts itself.
  DeviceCommunicator(const CommunicatorConfig& config, std::stop_token abandoned);

  // Of any thread; known before the group is.
  int32_t rank() const { return config_.rank; }
  int32_t worldSize() const { return config_.worldSize; }

  // The rest but `abort` is for the device's thread. `open` makes the backend's communicator;
  // should that fail, `get` throws the same error. INVALID_STATE before `open`, SHUT_DOWN after
  // `release`.
  void open(Ops& ops);
  Communicator& get();
  void release() noexcept override;

  // From any thread and at any time, as Communicator::abort.
  void abort(const std::string& reason) noexcept;

 private:
  struct Abandon {
    DeviceCommunicator& communicator;
    void operator()() const noexcept { communicator.abort("the device was shut down"); }
  };

  const CommunicatorConfig config_;
  std::mutex mutex_;  // of the three below, for `abort`
  std::unique_ptr<Communicator> communicator_;
  std::exception_ptr whyNone_;
  std::optional<std::string> aborted_;
  std::stop_callback<Abandon> whenAbandoned_;
};

}  // namespace uniproc
