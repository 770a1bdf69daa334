// Compares nccl_library.h with nccl.h at compile time, if nccl.h is installed; nothing runs.
#if __has_include(<nccl.h>)

#include <nccl.h>

#include <cstddef>
#include <type_traits>

#include "ops/cuda/nccl_library.h"

namespace uniproc::cuda::nccl {
namespace {

// Whether our type has the layout of NCCL's, so that it can stand for it in calls.
template <class Ours, class Theirs>
constexpr bool kSameLayout =
    std::is_same_v<Ours, Theirs> || (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>) ||
    (std::is_enum_v<Ours> && std::is_enum_v<Theirs> && sizeof(Ours) == sizeof(Theirs)) ||
    (std::is_same_v<Ours, UniqueId> && std::is_same_v<Theirs, ncclUniqueId>);

template <class Ours, class Theirs>
struct CallsAlike : std::false_type {};
template <class OurResult, class... Ours, class TheirResult, class... Theirs>
  requires(sizeof...(Ours) == sizeof...(Theirs))
struct CallsAlike<OurResult (*)(Ours...), TheirResult (*)(Theirs...)>
    : std::bool_constant<kSameLayout<OurResult, TheirResult> &&
                         (kSameLayout<Ours, Theirs> && ...)> {};

#define REQUIRE_ALIKE(ours, theirs) \
  static_assert(CallsAlike<decltype(Library::ours), decltype(&::theirs)>::value, #theirs)

REQUIRE_ALIKE(getVersion, ncclGetVersion);
REQUIRE_ALIKE(getUniqueId, ncclGetUniqueId);
REQUIRE_ALIKE(commInitRankConfig, ncclCommInitRankConfig);
REQUIRE_ALIKE(commGetAsyncError, ncclCommGetAsyncError);
REQUIRE_ALIKE(commAbort, ncclCommAbort);
REQUIRE_ALIKE(allReduce, ncclAllReduce);
REQUIRE_ALIKE(allGather, ncclAllGather);
REQUIRE_ALIKE(broadcast, ncclBroadcast);
REQUIRE_ALIKE(getErrorString, ncclGetErrorString);
REQUIRE_ALIKE(getLastError, ncclGetLastError);

#define REQUIRE_VALUE(ours, theirs) \
  static_assert(static_cast<long>(ours) == static_cast<long>(theirs), #theirs)

REQUIRE_VALUE(kSuccess, ncclSuccess);
REQUIRE_VALUE(kRemoteError, ncclRemoteError);
REQUIRE_VALUE(kInProgress, ncclInProgress);
REQUIRE_VALUE(kInt64, ncclInt64);
REQUIRE_VALUE(kFloat16, ncclFloat16);
REQUIRE_VALUE(kFloat32, ncclFloat32);
REQUIRE_VALUE(kBFloat16, ncclBfloat16);
REQUIRE_VALUE(kSum, ncclSum);
REQUIRE_VALUE(kMax, ncclMax);
REQUIRE_VALUE(kMin, ncclMin);

static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId));
static_assert(sizeof(Config) <= sizeof(ncclConfig_t));
static_assert(Config{}.magic == NCCL_API_MAGIC && Config::kUndefined == NCCL_CONFIG_UNDEF_INT);

#define REQUIRE_PLACE(field) \
  static_assert(offsetof(Config, field) == offsetof(ncclConfig_t, field), #field)

REQUIRE_PLACE(size);
REQUIRE_PLACE(magic);
REQUIRE_PLACE(version);
REQUIRE_PLACE(blocking);
REQUIRE_PLACE(cgaClusterSize);
REQUIRE_PLACE(minCTAs);
REQUIRE_PLACE(maxCTAs);
REQUIRE_PLACE(netName);
REQUIRE_PLACE(splitShare);

}  // namespace
}  // namespace uniproc::cuda::nccl

#endif
