#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"

namespace uniproc {

// PEER_LOST: a rank ended or missed the deadline. `rank` is null if the group was aborted and no
// rank is to blame. The message holds the reason alone.
class __attribute__((visibility("default"))) PeerLost : public Error {
 public:
  PeerLost(std::optional<int32_t> rank, const std::string& reason)
      : Error("PEER_LOST", reason), rank_(rank) {}

  std::optional<int32_t> rank() const noexcept { return rank_; }

 private:
  std::optional<int32_t> rank_;
};

}  // namespace uniproc
