#include "comm/device_communicator.h"

#include <utility>

#include "base/error.h"

namespace uniproc {
namespace {

const CommunicatorConfig& checked(const CommunicatorConfig& config) {
  if (config.rank < 0 || config.rank >= config.worldSize) {
    throw Error("CONFIG_INVALID", "rank " + std::to_string(config.rank) +
                                      " is outside a world of size " +
                                      std::to_string(config.worldSize));
  }
  if (config.timeout < 1) {
    throw Error("CONFIG_INVALID", "the communicator timeout must be positive, got " +
                                      std::to_string(config.timeout) + " ms");
  }
  return config;
}

}  // namespace

DeviceCommunicator::DeviceCommunicator(const CommunicatorConfig& config, StopToken abandoned)
    : config_(checked(config)),
      unavailableError_(
          std::make_exception_ptr(Error("INVALID_STATE", "the communicator is not open"))),
      abandonCallback_(std::move(abandoned), [this] { abort("the device was shut down"); }) {}

void DeviceCommunicator::open(Backend& backend) {
  std::unique_ptr<Communicator> communicator;
  std::exception_ptr failure;
  try {
    communicator = backend.makeCommunicator(config_);
  } catch (...) {
    failure = std::current_exception();
  }

  {
    std::lock_guard lock(mutex_);
    communicator_ = std::move(communicator);
    unavailableError_ = failure;
    if (communicator_ && aborted_) communicator_->abort(*aborted_);
  }
  if (failure) std::rethrow_exception(failure);
}

Communicator& DeviceCommunicator::get() {
  if (!communicator_) std::rethrow_exception(unavailableError_);
  return *communicator_;
}

void DeviceCommunicator::release() noexcept {
  std::unique_ptr<Communicator> communicator;
  std::lock_guard lock(mutex_);
  communicator_.swap(communicator);
  unavailableError_ = std::make_exception_ptr(Error("SHUT_DOWN", "the communicator was shut down"));
}

void DeviceCommunicator::abort(const std::string& reason) noexcept {
  std::lock_guard lock(mutex_);
  if (aborted_) return;
  aborted_ = reason;
  if (communicator_) communicator_->abort(reason);
}

}  // namespace uniproc
