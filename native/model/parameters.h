// All parameters of a model: declared by its blocks, allocated on the device, filled from
// checkpoint files.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/buffer.h"
#include "base/stop_token.h"
#include "base/thread_pool.h"
#include "model/checkpoint.h"
#include "model/parameter.h"
#include "model/spec.h"
#include "model/tensor_layout.h"
#include "ops/cpu/memory.h"

namespace uniproc {

// Elements between the rows and between the columns of a matrix in a file; 0: it is contiguous. Of
// a float type any; of others the columns are adjacent.
struct Strides {
  int64_t row = 0;
  int64_t col = 0;
};

// Location of a parameter tensor in a checkpoint; ParameterSource of lib/native/index.ts.
struct ParameterSource {
  int32_t parameter = 0;  // index into Parameters::declared
  int32_t expert = -1;    // -1: the parameter is a single tensor
  int32_t file = 0;
  int64_t offset = 0;  // byte in the file where the tensor begins
  // kFloat32 for the 32-bit integers of kOrder, kInt8 for bytes of E8M0.
  StorageType type = StorageType::kFloat32;
  TensorLayout layout = TensorLayout::kRows;
  TensorRows whole;  // in layouts other than kRows
  Strides strides;
};

// All weights in pageable host memory.
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
      : dtype_(shard.spec().dtype),
        normOffset_(shard.spec().normOffset),
        rank_(shard.rank()),
        formats_(shard.spec().weightFormats) {}
  // Not copyable: the declared targets point into the blocks and into this object.
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  // For blocks, during construction of the model. `target` has its shape from then on, and its data
  // while the parameters are allocated.

  // A norm's weight [size].
  void norm(Weight& target, ModuleName name, Dimension size, HeadOrder order = {});
  // The weight of a norm without weights: `size` ones, in no checkpoint.
  void ones(Weight& target, int64_t size);
  // Another vector [size], of the model's type or of `type`.
  void vector(Weight& target, ModuleName name, Dimension size, std::optional<DType> type = {});
  // A matrix [rows, cols] of the model's type, or of its format if that has no scales; holds
  // `storedRows` rows, zeros beyond `rows`. `isMultiplied`: linear layers use it too.
  void matrix(LinearWeight& target, ModuleName name, Dimension rows, Dimension cols,
              int64_t storedRows, bool isMultiplied = false);
  struct LinearPart {
    ModuleName name;
    Dimension rows;
    HeadOrder order = {};
  };
  enum class Bias : uint8_t {
    kNone,
    kAll,        // each rank holds the biases of its rows
    kFirstRank,  // rank 0 holds it, because the ranks' outputs are summed
  };
  // Linear layers with the same input, whose matrices are stacked into one weight.
  struct LinearLayers {
    std::vector<LinearPart> parts;
    Dimension cols;
    Bias bias = Bias::kNone;
    int64_t storedRows = 0;  // rows held, at least the parts' rows; zeros beyond them
    Share experts = {};      // each has these parts, stacked by expert; of 0: no experts
  };
  // Parts may have different formats if these have no scales and there are no experts. Throws
  // CONFIG_INVALID for other differences.
  void linear(LinearWeight& target, const LinearLayers& layers);

  const std::vector<Parameter>& declared() const { return declared_; }

  bool isAllocated() const { return !buffers_.empty(); }
  // Reads the sources and converts float types to the model's type. Throws CHECKPOINT_INVALID
  // before allocating if a tensor of this rank does not have exactly one source or its file is too
  // short, and later if a file becomes shorter or unreadable. `progress` receives the bytes read
  // and the tensors completed. Throws SHUT_DOWN when asked to stop. After an error nothing is
  // allocated.
  using Progress = std::function<void(int64_t bytes, int64_t tensors)>;
  void load(Ops& ops, const std::vector<std::string>& files,
            const std::vector<ParameterSource>& sources, const Progress& progress, StopToken stop);
  // Fills weights from Normal(0, 0.02), norms with 1 less their offset, by `seed`.
  void fillRandom(Ops& ops, uint64_t seed);
  void release() noexcept;

  // Copy the weights to host memory, and back. Throw Error OUT_OF_MEMORY if the host, or the
  // device, lacks memory.
  std::unique_ptr<const HostCopy> toHost(Ops& ops) const;
  void fromHost(Ops& ops, const HostCopy& copy);

 private:
  // A piece of device memory for one or more parameters.
  struct Storage {
    const void** data;
    size_t bytes;
    StorageType type;
    ParameterPart part;
    std::optional<float> constant;  // in place of random values
    LinearWeight* linear;           // that a part of a linear layer belongs to, but biases
  };
  // The destination of a declared parameter: its tensor of the rank's expert i starts at row
  // rowOffset + i * expertRows.
  struct Place {
    size_t storage = 0;
    int64_t rowOffset = 0;
    int64_t expertRows = 0;
  };
  // A linear layer's weight, of whose rows experts take multiples of `sliceRows`.
  struct Linear {
    LinearWeight* weight;
    int64_t sliceRows;
  };
  // A source, checked against its file and destination.
  struct CheckedSource {
    const ParameterSource* source;
    const Parameter* parameter;
    size_t storage;
    int64_t rowOffset;
    size_t scales;  // storage, of a matrix to quantize
  };

  WeightFormat formatOf(const ModuleName& name) const;
  WeightFormat commonFormat(const std::vector<LinearPart>& parts) const;
  bool areMixed(const LinearLayers& layers) const;
  static WeightFormat formatInMemory(const WeightFormat& stored, const LinearLayers& layers);
  size_t store(const void** data, size_t bytes, StorageType type, ParameterPart part,
               std::optional<float> constant = {});
  size_t storePart(LinearWeight& weight, ParameterPart part);
  void declare(Parameter parameter, Place place);
  std::vector<CheckedSource> check(const std::vector<ParameterSource>& sources,
                                   const std::vector<CheckpointFile>& files) const;
  void allocate(Ops& ops);
  // Once the weights are filled: into the layout of the backend.
  void arrange(Ops& ops);
  void readStrided(Ops& ops, const CheckedSource& checked, const CheckpointFile& file,
                   ThreadPool& pool);
  static int numReaders(const std::vector<CheckedSource>& readings);
  void requireInFile(const ParameterSource& source, const Parameter& parameter,
                     const CheckpointFile& file) const;
  void readWeight(Ops& ops, const CheckedSource& checked, const CheckpointFile& file,
                  StopToken stop);
  // Quantizes a matrix of a float type, and sets its scales.
  void quantize(Ops& ops, const CheckedSource& checked, const CheckpointFile& file, StopToken stop);
  void readScales(Ops& ops, const CheckedSource& checked, const CheckpointFile& file);
  // Sets the columns of a weight in memory, by their order in the file, before it is allocated.
  void readOrder(const CheckedSource& checked, const CheckpointFile& file);
  void uploadOrder(Ops& ops, const CheckedSource& checked);
  template <class T>
  void uploadBlocks(Ops& ops, const CheckedSource& checked, const std::vector<T>& blocks);
  // The file's column of each of this rank's columns in memory.
  std::vector<int32_t> columnsOf(const Parameter& matrix) const;

  const DType dtype_;
  const float normOffset_;
  const int32_t rank_;
  const std::map<std::string, WeightFormat> formats_;
  std::vector<Parameter> declared_;
  std::vector<Place> places_;  // destination of each declared parameter
  std::vector<Storage> storages_;
  std::vector<Linear> linears_;
  std::vector<std::unique_ptr<LinearWeight[]>> mixed_;  // parts of weights
  std::vector<Buffer> buffers_;                         // one per storage, while allocated
  std::map<size_t, ColumnOrder> orders_;                // by weight, while loading
};

}  // namespace uniproc
