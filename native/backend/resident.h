#pragma once

namespace uniproc {

// An object that owns device memory. The device releases it on its own thread when it closes,
// unless it was released before.
class Resident {
 public:
  virtual ~Resident() = default;
  virtual void release() noexcept = 0;
};

}  // namespace uniproc
