// NCCL, opened at run time, so that this builds and a single GPU runs where there is none: what is
// used of its C interface, as release 2.18 has it and later ones keep it. nccl_declarations.cpp
// compares all this with nccl.h where that is.
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

// Says of which release it is; NCCL takes what was added later as undefined.
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
  int version = 0;  // 22803 is 2.28.3
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

// The process's one: libnccl.so.2 where the loader finds it, or the file that the environment's
// UNIPROC_NCCL_LIBRARY names. Throws Error COMMUNICATOR_FAILED, saying what was looked for.
const Library& library();

// 'remote process exited or there was a network error; ' and what NCCL adds, of a call's result.
std::string describe(Result result, Comm comm);

// 22803 is '2.28.3'.
std::string versionText(int version);

}  // namespace uniproc::cuda::nccl
