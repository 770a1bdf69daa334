#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"

namespace uniproc {

// PEER_LOST: a rank is gone, or did not come in time; none is named where it is the group that was
// given up. The message is the reason alone.
class __attribute__((visibility("default"))) PeerLost : public Error {
 public:
  PeerLost(std::optional<int32_t> rank, const std::string& reason)
      : Error("PEER_LOST", reason), rank_(rank) {}

  std::optional<int32_t> rank() const noexcept { return rank_; }

 private:
  std::optional<int32_t> rank_;
};

}  // namespace uniproc
