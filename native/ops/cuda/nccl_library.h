// NCCL, loaded at run time, so that the build and a single GPU work without it. Declares the C
// interface that is used, as of release 2.18. nccl_declarations.cpp compares the declarations with
// nccl.h if it is installed.
#pragma once

#include <cuda_runtime_api.h>

#include <climits>
#include <cstddef>
#include <string>

struct ncclComm;

namespace uniproc::cuda::nccl {

using Comm = ncclComm*;

enum Result : int { kSuccess = 0, kRemoteError = 6, kInProgress = 7 };
enum DataType : int { kInt64 = 4, kFloat16 = 6, kFloat32 = 7, kBFloat16 = 9 };
enum RedOp : int { kSum = 0, kMax = 2, kMin = 3 };

struct UniqueId {
  char internal[128] = {};
};

// Carries its release; NCCL treats fields added by later releases as undefined.
struct Config {
  static constexpr int kUndefined = INT_MIN;

  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = kUndefined;
  int cgaClusterSize = kUndefined;
  int minCTAs = kUndefined;
  int maxCTAs = kUndefined;
  const char* netName = nullptr;
  int splitShare = kUndefined;
};

struct Library {
  int version = 0;  // for example 22803 for 2.28.3
  Result (*getVersion)(int* version);
  Result (*getUniqueId)(UniqueId* id);
  Result (*commInitRankConfig)(Comm* comm, int numRanks, UniqueId id, int rank, Config* config);
  Result (*commGetAsyncError)(Comm comm, Result* error);
  Result (*commAbort)(Comm comm);
  Result (*allReduce)(const void* in, void* out, size_t count, DataType type, RedOp op, Comm comm,
                      cudaStream_t stream);
  Result (*allGather)(const void* in, void* out, size_t countOfEach, DataType type, Comm comm,
                      cudaStream_t stream);
  Result (*broadcast)(const void* in, void* out, size_t count, DataType type, int root, Comm comm,
                      cudaStream_t stream);
  const char* (*getErrorString)(Result result);
  const char* (*getLastError)(Comm comm);
};

// The process's NCCL: the file that UNIPROC_NCCL_LIBRARY names, else libnccl.so.2 from one of the
// places of base/cuda_libraries.h. Throws Error COMMUNICATOR_FAILED, which names the file.
const Library& library();

// The text of a call's result with NCCL's details, for example 'remote process exited or there was
// a network error; ...'.
std::string describe(Result result, Comm comm);

// '2.28.3' for 22803.
std::string versionText(int version);

}  // namespace uniproc::cuda::nccl
