// All parameters of a model: declared by its blocks, allocated on the device, filled from a
// checkpoint's files.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "backend/buffer.h"
#include "model/checkpoint.h"
#include "model/parameter.h"
#include "model/spec.h"
#include "ops/cpu/memory.h"

namespace uniproc {

// Where a checkpoint has a parameter: a whole tensor, its elements side by side. ParameterSource of
// lib/native/index.ts.
struct ParameterSource {
  int32_t parameter = 0;  // index into Parameters::declared
  int32_t expert = -1;    // -1: the parameter is a single tensor
  int32_t file = 0;
  int64_t offset = 0;  // the byte in the file where the tensor begins
  StorageType type = StorageType::kFloat32;
};

// All weights' bytes in host memory, which is not pinned.
class HostCopy {
 public:
  explicit HostCopy(size_t bytes);
  ~HostCopy();
  HostCopy(const HostCopy&) = delete;
  HostCopy& operator=(const HostCopy&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  MemoryAccount memory_;
  const size_t bytes_;
  void* const data_;
};

class Parameters {
 public:
  explicit Parameters(const ModelShard& shard)
      : dtype_(shard.spec().dtype), rank_(shard.rank()), formats_(shard.spec().weightFormats) {}
  // What the blocks declared points into them and into this.
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  // For blocks, while the model is made. `target` has its shape from then on, and its data while
  // the parameters are allocated.

  // A norm's weight [size].
  void norm(Weight& target, ModuleName name, Dimension size);
  // A matrix of the model's type [rows, cols]; `storedRows` are held, those beyond `rows` zeros.
  void matrix(Weight& target, ModuleName name, Dimension rows, Dimension cols, int64_t storedRows);
  struct LinearPart {
    ModuleName name;
    Dimension rows;
  };
  enum class Bias : uint8_t {
    kNone,
    kAll,   // each rank has those of its rows
    kOnce,  // rank 0 has it: the ranks' outputs are summed
  };
  // The matrices of some linear layers of the same input, one below the other in one weight.
  struct LinearLayers {
    std::vector<LinearPart> parts;
    Dimension cols;
    Bias bias = Bias::kNone;
    int64_t storedRows = 0;  // rows held, at least those of the parts; the others are zeros
    Share experts = {};      // each has these parts, one expert below the other; of 0: no experts
  };
  // Throws Error CONFIG_INVALID where the parts have different formats.
  void linear(LinearWeight& target, const LinearLayers& layers);

  const std::vector<Parameter>& declared() const { return declared_; }

  bool isAllocated() const { return !buffers_.empty(); }
  // Reads the sources, converting what is stored as the model's type. Every declared tensor of this
  // rank must be named once and lie in its file: Error CHECKPOINT_INVALID, before anything is
  // allocated; the same error when a file becomes shorter or unreadable meanwhile. `progress` is
  // told the bytes read and the tensors done. Gives up with SHUT_DOWN when asked to stop. On an
  // error nothing is allocated.
  using Progress = std::function<void(int64_t bytes, int64_t tensors)>;
  void load(Ops& ops, const std::vector<std::string>& files,
            const std::vector<ParameterSource>& sources, const Progress& progress,
            std::stop_token stop);
  // Normal(0, 0.02), norms 1, from the seed.
  void fillRandom(Ops& ops, uint64_t seed);
  void release() noexcept;

  // To host memory, and the same from there. Throw Error OUT_OF_MEMORY when the host, or the
  // device, has not that much free.
  std::unique_ptr<const HostCopy> toHost(Ops& ops) const;
  void fromHost(Ops& ops, const HostCopy& copy);

 private:
  // A piece of device memory that one or more parameters fill.
  struct Storage {
    const void** data;
    size_t bytes;
    StorageType type;
    ParameterPart part;
    bool isNorm;
    const LinearWeight* linear;  // that scales belong to
  };
  // Where a declared parameter goes: its tensor of the rank's expert i to row rowOffset + i *
  // expertRows.
  struct Place {
    size_t storage = 0;
    int64_t rowOffset = 0;
    int64_t expertRows = 0;
  };
  // A source, once its file and its place are known to hold it.
  struct Reading {
    const ParameterSource* source;
    const Parameter* parameter;
    size_t storage;
    int64_t rowOffset;
  };

  WeightFormat formatOf(const ModuleName& name) const;
  WeightFormat commonFormat(const std::vector<LinearPart>& parts) const;
  static WeightFormat formatInMemory(const WeightFormat& stored, const LinearLayers& layers);
  size_t store(const void** data, size_t bytes, StorageType type, ParameterPart part,
               bool isNorm = false);
  void declare(Parameter parameter, Place place);
  std::vector<Reading> check(const std::vector<ParameterSource>& sources,
                             const std::vector<CheckpointFile>& files) const;
  void allocate(Ops& ops);
  void read(Ops& ops, const Reading& reading, const CheckpointFile& file, std::stop_token stop);
  void readScales(Ops& ops, const Reading& reading, const CheckpointFile& file);

  const DType dtype_;
  const int32_t rank_;
  const std::map<std::string, WeightFormat> formats_;
  std::vector<Parameter> declared_;
  std::vector<Place> places_;  // of each that is declared
  std::vector<Storage> storages_;
  std::vector<Buffer> buffers_;  // one for each storage, while allocated
};

}  // namespace uniproc
