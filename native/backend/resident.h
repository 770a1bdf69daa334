// What keeps memory on a device for longer than a call.
#pragma once

namespace uniproc {

// What keeps memory on a device. The device has it let go, on its own thread, at the latest when it
// closes.
class Resident {
 public:
  virtual ~Resident() = default;
  virtual void release() noexcept = 0;
};

}  // namespace uniproc
