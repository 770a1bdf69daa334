#include "model/parameters.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/float_types.h"

namespace uniproc {
namespace {

// Rows are read in pieces, so that stopping is prompt.
constexpr int64_t kBytesPerPiece = int64_t{128} << 20;
// Distance between the random seeds of two parameters: the golden ratio's bits.
constexpr uint64_t kParameterSeedStride = 0x9E3779B97F4A7C15;

constexpr int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t bytesOf(StorageType type, int64_t count) {
  return count * static_cast<int64_t>(sizeOf(type));
}

[[noreturn]] void throwInvalid(const std::string& message, const std::string& file = {}) {
  throw Error("CHECKPOINT_INVALID", message, file);
}

// Location in the file of rows [first, first + count) of this rank's share.
FileRows rowsInFile(const ParameterSource& source, const Parameter& parameter, int64_t first,
                    int64_t count) {
  const Share cols = parameter.cols();
  const int64_t row = parameter.rows().first + first;
  return {source.offset + bytesOf(source.type, row * cols.of + cols.first), count,
          bytesOf(source.type, cols.count), bytesOf(source.type, cols.of)};
}

// The blocks of `size` elements that overlap a share.
Share blocksOf(const Share& share, int64_t size) {
  const int64_t first = share.first / size;
  const int64_t end = ceilDiv(share.first + share.count, size);
  return {ceilDiv(share.of, size), first, share.count == 0 ? 0 : end - first};
}

// Mean and standard deviation of random values, such that a product's terms are about 0.02.
std::pair<float, float> randomValues(StorageType type, ParameterPart part, bool isNorm) {
  constexpr float kStd = 0.02f;
  constexpr float kFloat8Std = 16.0f;  // standard deviation before scaling
  if (isNorm) return {1.0f, 0.0f};
  if (part == ParameterPart::kScales) return {kStd / kFloat8Std, 0.0f};
  return {0.0f, isFloat(type) ? kStd : kFloat8Std};
}

bool canBeStoredAs(const Parameter& parameter, StorageType type) {
  const bool isQuantized =
      parameter.part == ParameterPart::kWeight && !isFloat(parameter.format.type);
  return isQuantized ? type == parameter.format.type : isFloat(type);
}

}  // namespace

HostCopy::HostCopy(size_t bytes)
    : bytes_(bytes), data_(memory_.allocate(bytes, "the weights in host memory")) {}

HostCopy::~HostCopy() { memory_.release(data_, bytes_); }

// Declaring -------------------------------------------------------------------------------------

void Parameters::norm(Weight& target, ModuleName name, Dimension size) {
  target = {nullptr, dtype_, size.share.count, 1};
  const StorageType type = storageOf(dtype_);
  const size_t storage = store(&target.data, bytesOf(type, target.rows), type,
                               ParameterPart::kWeight, /*isNorm=*/true);
  declare({name, ParameterPart::kWeight, {}, {size}, false, {type}, storage}, {storage});
}

void Parameters::matrix(Weight& target, ModuleName name, Dimension rows, Dimension cols,
                        int64_t storedRows) {
  target = {nullptr, dtype_, storedRows, cols.share.count};
  const StorageType type = storageOf(dtype_);
  const size_t storage =
      store(&target.data, bytesOf(type, target.rows * target.cols), type, ParameterPart::kWeight);
  declare({name, ParameterPart::kWeight, {}, {rows, cols}, false, {type}, storage}, {storage});
}

// Blocks of scales in memory start where a part starts and where a block in the file does.
WeightFormat Parameters::formatInMemory(const WeightFormat& stored, const LinearLayers& layers) {
  if (!stored.hasScales()) return stored;
  int64_t scaleRows = stored.scaleRows;
  int64_t rows = 0;
  for (const LinearPart& part : layers.parts) {
    scaleRows = std::gcd(std::gcd(scaleRows, rows), part.rows.share.first);
    rows += part.rows.share.count;
  }
  if (layers.experts.count > 1) scaleRows = std::gcd(scaleRows, rows);
  const int64_t scaleCols = std::gcd(int64_t{stored.scaleCols}, layers.cols.share.first);
  return {stored.type, static_cast<int32_t>(scaleRows), static_cast<int32_t>(scaleCols)};
}

void Parameters::linear(LinearWeight& target, const LinearLayers& layers) {
  const auto& [parts, cols, bias, storedRows, experts] = layers;
  const WeightFormat stored = commonFormat(parts);
  int64_t expertRows = 0;
  for (const LinearPart& part : parts) expertRows += part.rows.share.count;
  const int64_t rows = experts.of > 0 ? experts.count * expertRows : expertRows;
  target.format = formatInMemory(stored, layers);
  target.dtype = dtype_;
  target.cols = cols.share.count;
  target.rows = std::max(rows, storedRows);

  const size_t weights = store(&target.data, bytesOf(stored.type, target.rows * target.cols),
                               stored.type, ParameterPart::kWeight);
  size_t scales = 0;
  if (stored.hasScales()) {
    const int64_t count = ceilDiv(target.rows, target.format.scaleRows) * target.scaleColumns();
    scales = store(&target.scales, bytesOf(StorageType::kFloat32, count), StorageType::kFloat32,
                   ParameterPart::kScales);
    storages_[scales].linear = &target;
  }
  const bool biasHere = bias == Bias::kAll || (bias == Bias::kFirstRank && rank_ == 0);
  size_t biases = 0;
  if (biasHere) {
    target.bias = {nullptr, dtype_, rows, 1};
    biases = store(&target.bias.data, bytesOf(storageOf(dtype_), rows), storageOf(dtype_),
                   ParameterPart::kBias);
  }

  int64_t rowOffset = 0;
  for (const LinearPart& layer : parts) {
    const Dimension& partRows = layer.rows;
    // Captures no structured binding, which Clang before 16 cannot.
    const auto declarePart = [&](ParameterPart part, std::vector<Dimension> shape, size_t storage) {
      const bool isLinear = part == ParameterPart::kWeight;
      declare({layer.name, part, layers.experts, std::move(shape), isLinear, stored, weights},
              {storage, rowOffset, expertRows});
    };
    declarePart(ParameterPart::kWeight, {partRows, cols}, weights);
    if (stored.hasScales()) {
      const Dimension rowBlocks = {blocksOf(partRows.share, stored.scaleRows), partRows.of};
      const Dimension colBlocks = {blocksOf(cols.share, stored.scaleCols), cols.of};
      declarePart(ParameterPart::kScales, {rowBlocks, colBlocks}, scales);
    }
    if (bias != Bias::kNone) {
      Dimension size = partRows;
      if (!biasHere) size.share.count = 0;
      declarePart(ParameterPart::kBias, {size}, biases);
    }
    rowOffset += partRows.share.count;
  }
}

WeightFormat Parameters::formatOf(const ModuleName& name) const {
  const auto found = formats_.find(name.toString());
  return found == formats_.end() ? WeightFormat{storageOf(dtype_)} : found->second;
}

WeightFormat Parameters::commonFormat(const std::vector<LinearPart>& parts) const {
  const WeightFormat format = formatOf(parts.front().name);
  for (const LinearPart& part : parts) {
    if (formatOf(part.name) == format) continue;
    throw Error("CONFIG_INVALID", parts.front().name.toString() + " and " + part.name.toString() +
                                      " form one weight and must have the same storage format");
  }
  return format;
}

size_t Parameters::store(const void** data, size_t bytes, StorageType type, ParameterPart part,
                         bool isNorm) {
  storages_.push_back({data, bytes, type, part, isNorm, nullptr});
  return storages_.size() - 1;
}

void Parameters::declare(Parameter parameter, Place place) {
  declared_.push_back(std::move(parameter));
  places_.push_back(place);
}

// Filling ---------------------------------------------------------------------------------------

void Parameters::allocate(Ops& ops) {
  for (const Storage& storage : storages_) {
    buffers_.emplace_back(ops, storage.bytes, "the weights");
    *storage.data = buffers_.back().data();
  }
}

void Parameters::release() noexcept {
  for (const Storage& storage : storages_) *storage.data = nullptr;
  buffers_.clear();
}

void Parameters::load(Ops& ops, const std::vector<std::string>& paths,
                      const std::vector<ParameterSource>& sources, const Progress& progress,
                      StopToken stop) {
  std::vector<CheckpointFile> files;
  for (const std::string& path : paths) files.emplace_back(path);
  const std::vector<CheckedSource> readings = check(sources, files);
  try {
    allocate(ops);
    int64_t bytesRead = 0;
    int64_t tensorsDone = 0;
    for (const CheckedSource& checked : readings) {
      const CheckpointFile& file = files[checked.source->file];
      if (checked.parameter->part == ParameterPart::kScales) {
        readScales(ops, checked, file);
      } else {
        read(ops, checked, file, stop);
      }
      const Parameter& parameter = *checked.parameter;
      bytesRead += bytesOf(checked.source->type, parameter.rows().count * parameter.cols().count);
      progress(bytesRead, ++tensorsDone);
    }
    ops.synchronize();
  } catch (...) {
    release();
    throw;
  }
}

// Sorted by position in the files.
std::vector<Parameters::CheckedSource> Parameters::check(
    const std::vector<ParameterSource>& sources, const std::vector<CheckpointFile>& files) const {
  std::vector<CheckedSource> readings;
  std::vector<std::vector<bool>> isNamed;
  for (const Parameter& parameter : declared_) isNamed.emplace_back(parameter.numTensors());
  for (const ParameterSource& source : sources) {
    const auto index = static_cast<size_t>(source.parameter);
    const bool isDeclared = source.parameter >= 0 && index < declared_.size();
    const int64_t tensor = isDeclared ? declared_[index].tensorOf(source.expert) : -1;
    if (tensor < 0) {
      const std::string ofExpert =
          source.expert < 0 ? "" : " of expert " + std::to_string(source.expert);
      throwInvalid("this rank has no parameter " + std::to_string(source.parameter) + ofExpert);
    }
    const Parameter& parameter = declared_[index];
    const std::string name = parameter.toString(tensor);
    if (source.file < 0 || source.file >= static_cast<int32_t>(files.size())) {
      throwInvalid(name + " refers to file " + std::to_string(source.file) + " of " +
                   std::to_string(files.size()));
    }
    const CheckpointFile& file = files[source.file];
    if (isNamed[index][tensor]) throwInvalid(name + " has two sources", file.path());
    isNamed[index][tensor] = true;
    if (!canBeStoredAs(parameter, source.type)) {
      throwInvalid(name + " is stored in a type that this model does not support for it",
                   file.path());
    }
    if (source.offset < 0) {
      throwInvalid("a tensor cannot begin at byte " + std::to_string(source.offset), file.path());
    }
    file.require(rowsInFile(source, parameter, 0, parameter.rows().count));
    const Place& place = places_[index];
    readings.push_back(
        {&source, &parameter, place.storage, place.rowOffset + tensor * place.expertRows});
  }
  for (size_t i = 0; i < declared_.size(); ++i) {
    const auto missing = std::find(isNamed[i].begin(), isNamed[i].end(), false);
    if (missing == isNamed[i].end()) continue;
    throwInvalid(declared_[i].toString(missing - isNamed[i].begin()) + " has no source",
                 files.empty() ? std::string() : files.front().path());
  }
  std::sort(readings.begin(), readings.end(), [](const CheckedSource& a, const CheckedSource& b) {
    return std::tie(a.source->file, a.source->offset) < std::tie(b.source->file, b.source->offset);
  });
  return readings;
}

void Parameters::read(Ops& ops, const CheckedSource& checked, const CheckpointFile& file,
                      StopToken stop) {
  const auto& [source, parameter, storageIndex, rowOffset] = checked;
  const Storage& storage = storages_[storageIndex];
  const Share cols = parameter->cols();
  const int64_t rowBytes = bytesOf(storage.type, cols.count);
  std::byte* out = buffers_[storageIndex].as<std::byte>() + rowOffset * rowBytes;
  const int64_t rowsPerPiece =
      std::max<int64_t>(1, kBytesPerPiece / bytesOf(source->type, cols.count));
  const int64_t numRows = parameter->rows().count;
  for (int64_t row = 0; row < numRows; row += rowsPerPiece) {
    if (stop.stopRequested()) throw Error("SHUT_DOWN", "loading the weights was aborted");
    const int64_t count = std::min(rowsPerPiece, numRows - row);
    const FileRows rows = rowsInFile(*source, *parameter, row, count);
    file.willRead(rows);
    ops.upload(out, storage.type, {file, rows.offset, source->type, count, cols.count, cols.of});
    out += count * rowBytes;
  }
}

// Repeats each scale for the weight's smaller blocks in memory, if it has any.
void Parameters::readScales(Ops& ops, const CheckedSource& checked, const CheckpointFile& file) {
  const auto& [source, scales, storage, rowOffset] = checked;
  const Parameter& matrix = *(scales - 1);  // declared directly before its scales
  const WeightFormat& inMemory = storages_[storage].linear->format;
  const int64_t numCols = storages_[storage].linear->scaleColumns();

  const Share rowBlocks = scales->rows();
  const Share colBlocks = scales->cols();
  const int64_t count = rowBlocks.count * colBlocks.of;
  std::vector<std::byte> stored(bytesOf(source->type, count));
  file.read(source->offset + bytesOf(source->type, rowBlocks.first * colBlocks.of),
            static_cast<int64_t>(stored.size()), stored.data());

  const int64_t numRows = ceilDiv(matrix.rows().count, inMemory.scaleRows);
  std::vector<float> out(numRows * numCols);
  for (int64_t row = 0; row < numRows; ++row) {
    const int64_t rowBlock =
        (matrix.rows().first + row * inMemory.scaleRows) / matrix.format.scaleRows;
    for (int64_t col = 0; col < numCols; ++col) {
      const int64_t colBlock =
          (matrix.cols().first + col * inMemory.scaleCols) / matrix.format.scaleCols;
      out[row * numCols + col] = elementAt(stored.data(), dtypeOf(source->type),
                                           (rowBlock - rowBlocks.first) * colBlocks.of + colBlock);
    }
  }
  auto* to = buffers_[storage].as<float>() + rowOffset / inMemory.scaleRows * numCols;
  ops.copyToDevice(to, out.data(), out.size() * sizeof(float));
  ops.synchronize();  // copies may still read `out`
}

void Parameters::fillRandom(Ops& ops, uint64_t seed) {
  try {
    allocate(ops);
    for (size_t i = 0; i < storages_.size(); ++i) {
      const Storage& storage = storages_[i];
      const auto count = static_cast<int64_t>(storage.bytes / sizeOf(storage.type));
      const auto [mean, std] = randomValues(storage.type, storage.part, storage.isNorm);
      ops.fillRandom(buffers_[i].data(), storage.type, count, mean, std,
                     seed + i * kParameterSeedStride);
    }
    ops.synchronize();
  } catch (...) {
    release();
    throw;
  }
}

std::unique_ptr<const HostCopy> Parameters::toHost(Ops& ops) const {
  size_t bytes = 0;
  for (const Buffer& buffer : buffers_) bytes += buffer.bytes();
  auto copy = std::make_unique<HostCopy>(bytes);
  std::byte* to = copy->data();
  for (const Buffer& buffer : buffers_) {
    ops.download(to, buffer.data(), static_cast<int64_t>(buffer.bytes()));
    to += buffer.bytes();
  }
  return copy;
}

void Parameters::fromHost(Ops& ops, const HostCopy& copy) {
  try {
    allocate(ops);
    const BytesInMemory memory(copy.data());
    int64_t from = 0;
    for (size_t i = 0; i < storages_.size(); ++i) {
      const StorageType type = storages_[i].type;
      const auto count = static_cast<int64_t>(storages_[i].bytes / sizeOf(type));
      ops.upload(buffers_[i].data(), type, {memory, from, type, 1, count, count});
      from += static_cast<int64_t>(storages_[i].bytes);
    }
    ops.synchronize();
  } catch (...) {
    release();
    throw;
  }
}

}  // namespace uniproc
