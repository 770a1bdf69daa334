#include "addon/ops_binding.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/binding.h"
#include "addon/model_values.h"
#include "addon/values.h"
#include "comm/communicator.h"
#include "model/request_slots.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/host.h"
#include "ops/philox.h"
#include "runtime/buffer.h"
#include "runtime/cuda_backend.h"
#include "runtime/error.h"

namespace uniproc {
namespace {

// Elements of one type in device memory; to JavaScript an opaque handle. int32 is stored as
// float32.
struct Tensor {
  std::shared_ptr<Ops> ops;
  DType dtype;
  int64_t count;
  Buffer buffer;
};

// A request table with its requests; to JavaScript an opaque handle.
struct Requests {
  std::shared_ptr<Ops> ops;
  RequestSlots slots;
  int64_t listBytes;  // of each
};

// A group's communicator; to JavaScript an opaque handle.
struct Group {
  std::shared_ptr<Ops> ops;
  std::unique_ptr<Communicator> communicator;
};

// Recorded operations; to JavaScript an opaque handle. There are none where a backend records none.
struct Recordings {
  std::shared_ptr<Ops> ops;
  std::unique_ptr<Graphs> graphs;
};

// For the lists of a table's requests, and the most for those of one.
constexpr int64_t kListMemory = 1 << 28;
constexpr int64_t kMaxListBytes = 1 << 20;

constexpr napi_type_tag kTensorTag = {0x756e6970726f6301, 1};
constexpr napi_type_tag kRequestsTag = {0x756e6970726f6301, 2};
constexpr napi_type_tag kGroupTag = {0x756e6970726f6301, 3};
constexpr napi_type_tag kRecordingsTag = {0x756e6970726f6301, 4};

template <typename T>
Napi::Value toHandle(Napi::Env env, std::unique_ptr<T> object, const napi_type_tag& tag) {
  auto handle = Napi::External<T>::New(
      env, object.get(), [](Napi::Env, T* done) { const std::unique_ptr<T> owner(done); });
  object.release();  // NOLINT(bugprone-unused-return-value): the handle owns it
  handle.TypeTag(&tag);
  return handle;
}

template <typename T>
T& fromHandle(Napi::Value value, const char* name, const napi_type_tag& tag) {
  if (!value.IsExternal() || !value.As<Napi::External<T>>().CheckTypeTag(&tag)) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a handle of ops");
  }
  return *value.As<Napi::External<T>>().Data();
}

bool isNothing(Napi::Value value) { return value.IsNull() || value.IsUndefined(); }

Tensor& toTensor(Napi::Value value, const char* name) {
  return fromHandle<Tensor>(value, name, kTensorTag);
}

// The tensor's memory, or null for null.
template <typename T = void>
T* toData(Napi::Value value, const char* name) {
  return isNothing(value) ? nullptr : toTensor(value, name).buffer.as<T>();
}

template <typename T = void>
T* dataOf(Napi::Object object, const char* name) {
  return toData<T>(object.Get(name), name);
}

int32_t int32Of(Napi::Object object, const char* name) { return toInt32(object.Get(name), name); }

DType toDType(Napi::Value value) {
  const std::string name = toString(value, "dtype");
  if (name == "float32" || name == "int32") return DType::kFloat32;
  if (name == "float16") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBFloat16;
  throw Napi::TypeError::New(value.Env(), "there is no dtype " + name);
}

// { data, rows, cols } or null.
Weight toWeight(Napi::Value value) {
  if (isNothing(value)) return {};
  const Napi::Object object = toObject(value, "weight");
  const Tensor& tensor = toTensor(object.Get("data"), "data");
  return {tensor.buffer.data(), nullptr, tensor.dtype, int32Of(object, "rows"),
          int32Of(object, "cols")};
}

Batch toBatch(Napi::Value value) {
  const Napi::Object object = toObject(value, "batch");
  Batch batch;
  batch.numRows = int32Of(object, "numRows");
  batch.numTokens = int32Of(object, "numTokens");
  batch.slots = dataOf<int32_t>(object, "slots");
  batch.numComputedTokens = dataOf<int32_t>(object, "numComputedTokens");
  batch.queryStarts = dataOf<int32_t>(object, "queryStarts");
  batch.tokenIds = dataOf<int32_t>(object, "tokenIds");
  batch.positions = dataOf<int32_t>(object, "positions");
  batch.cacheSlots = dataOf<int32_t>(object, "cacheSlots");
  batch.tokenRows = dataOf<int32_t>(object, "tokenRows");
  batch.maxQueryLen = int32Of(object, "maxQueryLen");
  batch.numDecodeRows = int32Of(object, "numDecodeRows");
  return batch;
}

AttentionShape toAttentionShape(Napi::Value value) {
  const Napi::Object object = toObject(value, "shape");
  return {int32Of(object, "numHeads"), int32Of(object, "numKvHeads"), int32Of(object, "headDim"),
          int32Of(object, "slidingWindow")};
}

KvCache toKvCache(Napi::Value value) {
  const Napi::Object object = toObject(value, "cache");
  const Tensor& keys = toTensor(object.Get("keys"), "keys");
  return {keys.buffer.data(), dataOf(object, "values"), keys.dtype, int32Of(object, "blockSize")};
}

Logprobs toLogprobs(Napi::Value value) {
  if (isNothing(value)) return {};
  const Napi::Object object = toObject(value, "logprobs");
  return {dataOf<int32_t>(object, "tokenIds"), dataOf<float>(object, "logprobs"),
          dataOf<int32_t>(object, "ranks"), int32Of(object, "maxLogprobs")};
}

const RequestTable& toTable(Napi::Value value) {
  return fromHandle<Requests>(value, "requests", kRequestsTag).slots.table();
}

// A typed array's bytes.
std::pair<uint8_t*, size_t> toBytes(Napi::Value value, const char* name) {
  if (!value.IsTypedArray()) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a typed array");
  }
  const auto array = value.As<Napi::TypedArray>();
  return {static_cast<uint8_t*>(array.ArrayBuffer().Data()) + array.ByteOffset(),
          array.ByteLength()};
}

Napi::Object fromFigures(Napi::Env env, double total, double free) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("total", total);
  object.Set("free", free);
  return object;
}

// NativeOps of test/native/ops/binding.ts: the calls of ops.h with handles for device memory.
class OpsBinding : public Binding<OpsBinding> {
 public:
  static Napi::Function define(Napi::Env env) {
    using This = OpsBinding;
    return DefineClass(env, "Ops",
                       {
                           method<&This::properties>("properties"),
                           method<&This::memory>("memory"),
                           method<&This::resetPeakMemory>("resetPeakMemory"),
                           method<&This::synchronize>("synchronize"),
                           method<&This::allocate>("allocate"),
                           method<&This::release>("release"),
                           method<&This::copyToDevice>("copyToDevice"),
                           method<&This::copyToHost>("copyToHost"),
                           method<&This::makeRequests>("makeRequests"),
                           method<&This::addRequest>("addRequest"),
                           method<&This::readRequest>("readRequest"),
                           method<&This::upload>("upload"),
                           method<&This::download>("download"),
                           method<&This::fillRandom>("fillRandom"),
                           method<&This::prepareInputs>("prepareInputs"),
                           method<&This::embed>("embed"),
                           method<&This::rmsNorm>("rmsNorm"),
                           method<&This::matmul>("matmul"),
                           method<&This::ropeAndCache>("ropeAndCache"),
                           method<&This::attention>("attention"),
                           method<&This::siluAndMul>("siluAndMul"),
                           method<&This::gatherRows>("gatherRows"),
                           method<&This::joinColumns>("joinColumns"),
                           method<&This::sample>("sample"),
                           method<&This::gatherLogprobs>("gatherLogprobs"),
                           method<&This::makeCommunicator>("makeCommunicator"),
                           method<&This::address>("address"),
                           method<&This::connect>("connect"),
                           method<&This::hasPeerMemory>("hasPeerMemory"),
                           method<&This::allReduce>("allReduce"),
                           method<&This::allGather>("allGather"),
                           method<&This::barrier>("barrier"),
                           method<&This::dropCommunicator>("dropCommunicator"),
                           method<&This::makeGraphs>("makeGraphs"),
                           method<&This::launchGraph>("launchGraph"),
                           method<&This::dropGraphs>("dropGraphs"),
                       });
  }

  // new Ops({ kind: 'cpu', numThreads, isa }) or new Ops({ kind: 'cuda', index })
  explicit OpsBinding(const Napi::CallbackInfo& info) : Binding(info) {
    withTypedErrors(info.Env(), [&] {
      const Napi::Object options = toObject(info[0], "options");
      const std::string kind = toString(options.Get("kind"), "kind");
      if (kind == "cuda") {
        ops_ = openCudaBackend(int32Of(options, "index"));
        return;
      }
      if (kind != "cpu") throw Error("NOT_SUPPORTED", "there is no device of kind " + kind);
      const Napi::Value isa = options.Get("isa");
      ops_ = makeCpuOps(int32Of(options, "numThreads"),
                        isNothing(isa) ? std::string() : toString(isa, "isa"));
    });
  }

 private:
  using Info = Napi::CallbackInfo;

  // { name, capability, numThreads }
  Napi::Value properties(const Info& info) {
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("name", ops_->name());
    object.Set("capability", ops_->capability());
    object.Set("numThreads", ops_->numThreads());
    return object;
  }

  Napi::Value memory(const Info& info) {
    const DeviceMemory memory = ops_->memory();
    Napi::Object object = fromFigures(info.Env(), static_cast<double>(memory.total),
                                      static_cast<double>(memory.free));
    object.Set("allocated", static_cast<double>(memory.allocated));
    object.Set("peakAllocated", static_cast<double>(memory.peakAllocated));
    return object;
  }

  Napi::Value resetPeakMemory(const Info& info) {
    ops_->resetPeakMemory();
    return info.Env().Undefined();
  }

  Napi::Value synchronize(const Info& info) {
    ops_->synchronize();
    return info.Env().Undefined();
  }

  // allocate(count, dtype, what): a handle of zeros.
  Napi::Value allocate(const Info& info) {
    const int64_t count = toInt64(info[0], "count");
    const DType dtype = toDType(info[1]);
    const std::string what = toString(info[2], "what");
    Buffer buffer(*ops_, static_cast<size_t>(count) * sizeOf(dtype), what.c_str());
    auto tensor = std::make_unique<Tensor>(Tensor{ops_, dtype, count, std::move(buffer)});
    return toHandle(info.Env(), std::move(tensor), kTensorTag);
  }

  // release(tensor): gives its memory back before the garbage collector does.
  Napi::Value release(const Info& info) {
    Tensor& tensor = toTensor(info[0], "tensor");
    tensor.buffer = {};
    tensor.count = 0;
    return info.Env().Undefined();
  }

  // copyToDevice(tensor, array): the array's bytes, as many as the tensor has.
  Napi::Value copyToDevice(const Info& info) {
    const Tensor& tensor = toTensor(info[0], "tensor");
    const auto [bytes, size] = toBytes(info[1], "array");
    requireSize(info, tensor, size);
    ops_->copyToDevice(tensor.buffer.data(), bytes, size);
    return info.Env().Undefined();
  }

  Napi::Value copyToHost(const Info& info) {
    const auto [bytes, size] = toBytes(info[0], "array");
    const Tensor& tensor = toTensor(info[1], "tensor");
    requireSize(info, tensor, size);
    ops_->copyToHost(bytes, tensor.buffer.data(), size);
    return info.Env().Undefined();
  }

  // makeRequests({ vocabSize, maxNumSeqs, maxModelLen, blockSize, maxLogprobs })
  Napi::Value makeRequests(const Info& info) {
    const Napi::Object object = toObject(info[0], "limits");
    ModelSpec spec;
    spec.vocabSize = int32Of(object, "vocabSize");
    ModelLimits limits;
    limits.maxNumSeqs = int32Of(object, "maxNumSeqs");
    limits.maxModelLen = int32Of(object, "maxModelLen");
    limits.blockSize = int32Of(object, "blockSize");
    limits.maxLogprobs = int32Of(object, "maxLogprobs");
    const int64_t share = std::min(kListMemory / std::max(limits.maxNumSeqs, 1), kMaxListBytes);
    const int64_t listBytes = share - share % RequestLimits::kListAlignment;
    limits.listMemoryBytes = limits.maxNumSeqs * listBytes;
    auto requests =
        std::make_unique<Requests>(Requests{ops_, RequestSlots(*ops_, spec, limits), listBytes});
    return toHandle(info.Env(), std::move(requests), kRequestsTag);
  }

  // addRequest(requests, slot, request, numCacheBlocks)
  Napi::Value addRequest(const Info& info) {
    auto& requests = fromHandle<Requests>(info[0], "requests", kRequestsTag);
    const int32_t slot = toInt32(info[1], "slot");
    Request request = toRequest(info[2]);
    request.listOffset = slot * requests.listBytes;
    requests.slots.add(*ops_, slot, request, toInt32(info[3], "numCacheBlocks"));
    return info.Env().Undefined();
  }

  // readRequest(requests, slot): { tokenIds, blockTable } as the device has them.
  Napi::Value readRequest(const Info& info) {
    const RequestTable& table = toTable(info[0]);
    const int32_t slot = toInt32(info[1], "slot");
    int32_t numTokens = 0;
    ops_->copyToHost(&numTokens, table.numTokens + slot, sizeof numTokens);
    const auto read = [&](const int32_t* row, int32_t count) {
      auto array = Napi::Int32Array::New(info.Env(), static_cast<size_t>(count));
      ops_->copyToHost(array.Data(), row, array.ByteLength());
      return array;
    };
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("tokenIds", read(table.tokenIds + int64_t{slot} * table.maxModelLen, numTokens));
    object.Set("blockTable", read(table.blockTable + int64_t{slot} * table.maxBlocksPerSeq,
                                  table.maxBlocksPerSeq));
    return object;
  }

  // upload(out, host, hostType): host is a typed array of any alignment. With `cols` and
  // `rowStride` behind it, out's rows are of that many columns and lie that far apart in host.
  Napi::Value upload(const Info& info) {
    const Tensor& out = toTensor(info[0], "out");
    const auto [bytes, size] = toBytes(info[1], "host");
    const DType hostType = toDType(info[2]);
    const bool inRows = !isNothing(info[3]);
    const int64_t cols = inRows ? toInt64(info[3], "cols") : out.count;
    const int64_t rowStride = inRows ? toInt64(info[4], "rowStride") : cols;
    const int64_t rows = cols > 0 ? out.count / cols : 0;
    const int64_t span = rows > 0 ? (rows - 1) * rowStride + cols : 0;
    if (rows * cols != out.count || size != static_cast<size_t>(span) * sizeOf(hostType)) {
      throw Napi::TypeError::New(info.Env(), "host must have the rows of out, and no more");
    }
    const BytesInMemory host(reinterpret_cast<const std::byte*>(bytes));
    ops_->upload(out.buffer.data(), out.dtype, {host, 0, hostType, rows, cols, rowStride});
    return info.Env().Undefined();
  }

  // download(array, tensor): the tensor's bytes, as many as the array has.
  Napi::Value download(const Info& info) {
    const auto [bytes, size] = toBytes(info[0], "array");
    const Tensor& tensor = toTensor(info[1], "tensor");
    requireSize(info, tensor, size);
    ops_->download(bytes, tensor.buffer.data(), static_cast<int64_t>(size));
    return info.Env().Undefined();
  }

  // fillRandom(out, mean, std, seed)
  Napi::Value fillRandom(const Info& info) {
    const Tensor& out = toTensor(info[0], "out");
    bool lossless = false;
    ops_->fillRandom(out.buffer.data(), out.dtype, out.count,
                     static_cast<float>(toNumber(info[1], "mean")),
                     static_cast<float>(toNumber(info[2], "std")),
                     info[3].As<Napi::BigInt>().Uint64Value(&lossless));
    return info.Env().Undefined();
  }

  // prepareInputs(requests, blockUpdates, numBlockUpdates, blockSize, batch)
  Napi::Value prepareInputs(const Info& info) {
    ops_->prepareInputs(toTable(info[0]), toData<int32_t>(info[1], "blockUpdates"),
                        toInt32(info[2], "numBlockUpdates"), toInt32(info[3], "blockSize"),
                        toBatch(info[4]));
    return info.Env().Undefined();
  }

  // embed(tokenIds, numTokens, table, firstToken, out)
  Napi::Value embed(const Info& info) {
    ops_->embed(toData<int32_t>(info[0], "tokenIds"), toInt32(info[1], "numTokens"),
                toWeight(info[2]), toInt32(info[3], "firstToken"), toData(info[4], "out"));
    return info.Env().Undefined();
  }

  // rmsNorm(x, residual, numTokens, weight, eps, out)
  Napi::Value rmsNorm(const Info& info) {
    ops_->rmsNorm(toData(info[0], "x"), toData(info[1], "residual"), toInt32(info[2], "numTokens"),
                  toWeight(info[3]), static_cast<float>(toNumber(info[4], "eps")),
                  toData(info[5], "out"));
    return info.Env().Undefined();
  }

  // matmul(x, numTokens, weight, bias, out)
  Napi::Value matmul(const Info& info) {
    const Tensor& out = toTensor(info[4], "out");
    ops_->matmul(toData(info[0], "x"), toInt32(info[1], "numTokens"), toWeight(info[2]),
                 toWeight(info[3]), out.buffer.data(), out.dtype);
    return info.Env().Undefined();
  }

  // ropeAndCache(qkv, batch, shape, qNorm, kNorm, eps, rope, cache)
  Napi::Value ropeAndCache(const Info& info) {
    ops_->ropeAndCache(toData(info[0], "qkv"), toBatch(info[1]), toAttentionShape(info[2]),
                       toWeight(info[3]), toWeight(info[4]),
                       static_cast<float>(toNumber(info[5], "eps")), toData<float>(info[6], "rope"),
                       toKvCache(info[7]));
    return info.Env().Undefined();
  }

  // attention(qkv, batch, shape, cache, requests, out)
  Napi::Value attention(const Info& info) {
    ops_->attention(toData(info[0], "qkv"), toBatch(info[1]), toAttentionShape(info[2]),
                    toKvCache(info[3]), toTable(info[4]), toData(info[5], "out"));
    return info.Env().Undefined();
  }

  // siluAndMul(gateUp, numTokens, size, out)
  Napi::Value siluAndMul(const Info& info) {
    const Tensor& out = toTensor(info[3], "out");
    ops_->siluAndMul(toData(info[0], "gateUp"), toInt32(info[1], "numTokens"),
                     toInt32(info[2], "size"), out.buffer.data(), out.dtype);
    return info.Env().Undefined();
  }

  // gatherRows(x, index, count, width, out)
  Napi::Value gatherRows(const Info& info) {
    const Tensor& out = toTensor(info[4], "out");
    ops_->gatherRows(toData(info[0], "x"), toData<int32_t>(info[1], "index"),
                     toInt32(info[2], "count"), toInt32(info[3], "width"), out.buffer.data(),
                     out.dtype);
    return info.Env().Undefined();
  }

  // joinColumns(parts, count, partWidth, width, out)
  Napi::Value joinColumns(const Info& info) {
    ops_->joinColumns(toData<float>(info[0], "parts"), toInt32(info[1], "count"),
                      toInt32(info[2], "partWidth"), toInt32(info[3], "width"),
                      toData<float>(info[4], "out"));
    return info.Env().Undefined();
  }

  // sample(logits, count, vocabSize, slots, requests, bitmask, sampled, logprobs, numNans)
  Napi::Value sample(const Info& info) {
    ops_->sample(toData<float>(info[0], "logits"), toInt32(info[1], "count"),
                 toInt32(info[2], "vocabSize"), toData<int32_t>(info[3], "slots"), toTable(info[4]),
                 toData<int32_t>(info[5], "bitmask"), toData<int32_t>(info[6], "sampled"),
                 toTensor(info[8], "numNans").buffer.as<int32_t>(), toLogprobs(info[7]));
    return info.Env().Undefined();
  }

  // gatherLogprobs(logits, count, vocabSize, tokenIds, numTop, out, numNans)
  Napi::Value gatherLogprobs(const Info& info) {
    ops_->gatherLogprobs(toData<float>(info[0], "logits"), toInt32(info[1], "count"),
                         toInt32(info[2], "vocabSize"), toData<int32_t>(info[3], "tokenIds"),
                         toInt32(info[4], "numTop"),
                         toTensor(info[6], "numNans").buffer.as<int32_t>(), toLogprobs(info[5]));
    return info.Env().Undefined();
  }

  // makeCommunicator({ rank, worldSize, timeout, customAllReduce }). The calls of a communicator
  // and of graphs wait on the JavaScript thread, for the other ranks too.
  Napi::Value makeCommunicator(const Info& info) {
    const Napi::Object object = toObject(info[0], "options");
    const CommunicatorConfig config{int32Of(object, "rank"), int32Of(object, "worldSize"),
                                    toInt64(object.Get("timeout"), "timeout"),
                                    toBool(object.Get("customAllReduce"), "customAllReduce")};
    auto group = std::make_unique<Group>(Group{ops_, ops_->makeCommunicator(config)});
    return toHandle(info.Env(), std::move(group), kGroupTag);
  }

  // address(communicator): a Uint8Array.
  Napi::Value address(const Info& info) {
    const std::vector<std::byte> address = toCommunicator(info[0]).address();
    auto array = Napi::Uint8Array::New(info.Env(), address.size());
    std::memcpy(array.Data(), address.data(), address.size());
    return array;
  }

  // connect(communicator, addresses): by rank.
  Napi::Value connect(const Info& info) {
    const Napi::Array array = toArray(info[1], "addresses");
    std::vector<std::vector<std::byte>> addresses;
    for (uint32_t i = 0; i < array.Length(); ++i) {
      const auto [bytes, size] = toBytes(array.Get(i), "addresses");
      const auto* data = reinterpret_cast<const std::byte*>(bytes);
      addresses.emplace_back(data, data + size);
    }
    toCommunicator(info[0]).connect(addresses);
    return info.Env().Undefined();
  }

  Napi::Value hasPeerMemory(const Info& info) {
    return Napi::Boolean::New(info.Env(), toCommunicator(info[0]).hasPeerMemory());
  }

  // allReduce(communicator, data): the sum, in place.
  Napi::Value allReduce(const Info& info) {
    const Tensor& data = toTensor(info[1], "data");
    toCommunicator(info[0]).allReduce(data.buffer.data(), data.count, toCommType(data.dtype),
                                      ReduceOp::kSum);
    return info.Env().Undefined();
  }

  // allGather(communicator, in, out)
  Napi::Value allGather(const Info& info) {
    const Tensor& in = toTensor(info[1], "in");
    toCommunicator(info[0]).allGather(in.buffer.data(), toData(info[2], "out"), in.count,
                                      toCommType(in.dtype));
    return info.Env().Undefined();
  }

  Napi::Value barrier(const Info& info) {
    toCommunicator(info[0]).barrier();
    return info.Env().Undefined();
  }

  Napi::Value dropCommunicator(const Info& info) {
    fromHandle<Group>(info[0], "communicator", kGroupTag).communicator.reset();
    return info.Env().Undefined();
  }

  Napi::Value makeGraphs(const Info& info) {
    auto recordings = std::make_unique<Recordings>(Recordings{ops_, ops_->makeGraphs()});
    return toHandle(info.Env(), std::move(recordings), kRecordingsTag);
  }

  // launchGraph(graphs, key, record): Graphs::launch of the operations that the function makes.
  Napi::Value launchGraph(const Info& info) {
    const auto& recordings = fromHandle<Recordings>(info[0], "graphs", kRecordingsTag);
    const Napi::Function record = toFunction(info[2], "record");
    const auto operations = [&record] { record.Call({}); };
    if (recordings.graphs) {
      recordings.graphs->launch(toInt32(info[1], "key"), operations);
    } else {
      operations();
    }
    return info.Env().Undefined();
  }

  Napi::Value dropGraphs(const Info& info) {
    fromHandle<Recordings>(info[0], "graphs", kRecordingsTag).graphs.reset();
    return info.Env().Undefined();
  }

  static Communicator& toCommunicator(Napi::Value value) {
    Group& group = fromHandle<Group>(value, "communicator", kGroupTag);
    if (!group.communicator) throw Error("SHUT_DOWN", "the communicator was dropped");
    return *group.communicator;
  }

  static void requireSize(const Info& info, const Tensor& tensor, size_t bytes) {
    if (bytes != static_cast<size_t>(tensor.count) * sizeOf(tensor.dtype)) {
      throw Napi::TypeError::New(info.Env(), "the array and the tensor differ in bytes");
    }
  }

  std::shared_ptr<Ops> ops_;
};

// philox(counter, key): counter [4], key [2] and the result [4] as Uint32Array.
Napi::Value philoxWords(const Napi::CallbackInfo& info) {
  const auto counter = info[0].As<Napi::Uint32Array>();
  const auto key = info[1].As<Napi::Uint32Array>();
  const PhiloxBlock block =
      philox({{counter[0], counter[1], counter[2], counter[3]}}, uint64_t{key[1]} << 32 | key[0]);
  auto words = Napi::Uint32Array::New(info.Env(), 4);
  std::memcpy(words.Data(), block.words, sizeof block.words);
  return words;
}

// hostMemory(root): { total, free } as the system's files under that folder have it.
Napi::Value hostMemoryFigures(const Napi::CallbackInfo& info) {
  const HostMemory memory = hostMemory(toString(info[0], "root"));
  return fromFigures(info.Env(), static_cast<double>(memory.total),
                     static_cast<double>(memory.free));
}

}  // namespace

Napi::Object makeOpsBinding(Napi::Env env) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("Ops", OpsBinding::define(env));
  object.Set("philox", Napi::Function::New<philoxWords>(env, "philox"));
  object.Set("hostMemory", Napi::Function::New<hostMemoryFigures>(env, "hostMemory"));
  return object;
}

}  // namespace uniproc
