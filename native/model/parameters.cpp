#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/float_types.h"
#include "model/gguf_rows.h"
#include "model/quantized_rows.h"

namespace uniproc {
namespace {

// Rows are read in pieces, so that stopping is prompt.
constexpr int64_t kBytesPerPiece = int64_t{128} << 20;
constexpr int64_t kMinBytesPerRead = int64_t{1} << 20;
// Distance between the random seeds of two parameters: the golden ratio's bits.
constexpr uint64_t kParameterSeedStride = 0x9E3779B97F4A7C15;

constexpr int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// The bytes between the first and the last element of this rank's share of a matrix in strides.
FileRows spanInFile(const ParameterSource& source, const Parameter& parameter) {
  const auto& [row, col] = source.strides;
  const Share& rows = parameter.rows();
  const Share cols = parameter.cols();
  if (row < 0 || col < 0) throwInvalid("a tensor's strides must not be negative");
  const int64_t span = bytesOf(source.type, (rows.count - 1) * row + (cols.count - 1) * col + 1);
  return {source.offset + bytesOf(source.type, rows.first * row + cols.first * col), 1, span, span};
}

// to [rows.size(), cols] = elements of `from`, in tiles, as one of the strides is long.
template <class Element>
void copyStrided(const Element* from, const Strides& strides, const std::vector<int64_t>& rows,
                 int64_t cols, Element* to, ThreadPool& pool) {
  constexpr int64_t kTile = 64;
  const auto numRows = static_cast<int64_t>(rows.size());
  pool.parallelFor(ceilDiv(numRows, kTile), /*minPerPart=*/1, [&](int64_t begin, int64_t end, int) {
    const int64_t lastRow = std::min(end * kTile, numRows);
    for (int64_t firstRow = begin * kTile; firstRow < lastRow; firstRow += kTile) {
      const int64_t endRow = std::min(firstRow + kTile, lastRow);
      for (int64_t firstCol = 0; firstCol < cols; firstCol += kTile) {
        const int64_t endCol = std::min(firstCol + kTile, cols);
        for (int64_t row = firstRow; row < endRow; ++row) {
          const Element* source = from + rows[row] * strides.row;
          if (strides.col == 1) {
            std::copy(source + firstCol, source + endCol, to + row * cols + firstCol);
            continue;
          }
          for (int64_t col = firstCol; col < endCol; ++col) {
            to[row * cols + col] = source[col * strides.col];
          }
        }
      }
    }
  });
}

// The blocks of `size` elements that overlap a share.
Share blocksOf(const Share& share, int64_t size) {
  const int64_t first = share.first / size;
  const int64_t end = ceilDiv(share.first + share.count, size);
  return {ceilDiv(share.of, size), first, share.count == 0 ? 0 : end - first};
}

// Standard deviation of a random weight's elements before scaling.
float randomStd(StorageType type) {
  switch (type) {
    case StorageType::kFloat8E4M3:
      return 16.0f;
    case StorageType::kInt8:
      return 40.0f;
    case StorageType::kUInt4:
      return 4.0f;
    default:
      return 3.0f;
  }
}

// Mean and standard deviation of random values, such that a product's terms are about 0.02.
// `scaled`: the type of the weight that scales belong to.
std::pair<float, float> randomValues(StorageType type, ParameterPart part, StorageType scaled) {
  constexpr float kStd = 0.02f;
  constexpr float kE8M0 = 120.0f;  // 2^-7
  if (part == ParameterPart::kZeros) return {8.0f, 0.0f};
  if (part == ParameterPart::kScales) {
    return {isFloat(type) ? kStd / randomStd(scaled) : kE8M0, 0.0f};
  }
  if (isFloat(type)) return {0.0f, kStd};
  // Two codes in each byte.
  if (isPacked(type)) return {128.0f, 64.0f};
  return {0.0f, randomStd(type)};
}

bool canBeStoredAs(const Parameter& parameter, StorageType type) {
  const StorageType ofMatrix = parameter.format.type;
  switch (parameter.part) {
    case ParameterPart::kWeight:
      return isFloat(type) || type == ofMatrix || isBlocks(type);
    case ParameterPart::kScales:
      return ofMatrix == StorageType::kFloat4E2M1 ? type == StorageType::kInt8 : isFloat(type);
    case ParameterPart::kZeros:
      return type == StorageType::kUInt4;
    case ParameterPart::kOrder:
      return type == StorageType::kFloat32;
    default:
      return isFloat(type);
  }
}

// Whether a tensor gets the elements and scales of its format when it is loaded: of a float type,
// or of blocks whose numbers the format has too.
bool mustQuantize(const Parameter& parameter, StorageType type) {
  return parameter.part == ParameterPart::kWeight && !isFloat(parameter.format.type) &&
         !isBlocks(parameter.format.type) && (isFloat(type) || isBlocks(type));
}

bool canQuantize(const WeightFormat& format, StorageType from) {
  if (format.scaleRows != 1 || format.hasZeros || format.isOrdered) return false;
  if (isFloat(from)) {
    return format.type == StorageType::kFloat8E4M3 || format.type == StorageType::kUInt4;
  }
  return format.scaleCols == blockSizeOf(from).cols &&
         (from == StorageType::kQ8_0
              ? format.type == StorageType::kInt8
              : from == StorageType::kQ4_0 && format.type == StorageType::kUInt4);
}

// Elements of a tensor's row as HostMatrix counts them: bytes of packed types and blocks.
int64_t lengthOf(StorageType type, int64_t count) {
  return isPacked(type) || isBlocks(type) ? bytesOf(type, count) : count;
}
StorageType asBytes(StorageType type) {
  return isPacked(type) || isBlocks(type) ? StorageType::kInt8 : type;
}

// Whether the file holds a parameter's tensor in int32 words.
bool hasWords(TensorLayout layout) {
  return layout == TensorLayout::kGptq || layout == TensorLayout::kGptqV2 ||
         layout == TensorLayout::kAwq || layout == TensorLayout::kPackedRows;
}

// Of each of the rank's rows in memory, its row in the rank's share of the file's tensor.
std::vector<int64_t> rowsOf(const Parameter& matrix) {
  std::vector<int64_t> rows;
  for (const RowRun& run : matrix.rowRuns()) {
    for (int64_t i = 0; i < run.count; ++i) rows.push_back(run.first + i);
  }
  return rows;
}

// Whether a rank has some of the columns of each group.
bool isOrderDivided(const WeightFormat& format, const Dimension& cols) {
  return format.isOrdered && cols.share.count < cols.share.of;
}

size_t bytesOfPart(const LinearWeight& weight, ParameterPart part) {
  const auto numBlocks = [&] {
    return ceilDiv(weight.rows, weight.format.scaleRows) * weight.scaleColumns();
  };
  switch (part) {
    case ParameterPart::kScales:
      return static_cast<size_t>(numBlocks() * weight.format.scaleBytes());
    case ParameterPart::kZeros:
      return static_cast<size_t>(numBlocks());
    case ParameterPart::kOrder:
      return static_cast<size_t>(weight.cols) * sizeof(int32_t);
    default:
      return static_cast<size_t>(bytesOf(weight.format.type, weight.rows * weight.cols));
  }
}

// This rank's columns of all rows that it has.
MatrixInFile matrixInFile(const ParameterSource& source, const Parameter& parameter,
                          const CheckpointFile& file) {
  const bool isInterleaved = source.layout == TensorLayout::kInterleavedHeads;
  return {file,
          source.offset,
          source.type,
          parameter.cols(),
          parameter.rows().first,
          isInterleaved ? parameter.order.headDim : 0};
}

// The matrix that scales, zero points or an order belong to, declared before them.
const Parameter& matrixOf(const Parameter* part) {
  while (part->part != ParameterPart::kWeight) --part;
  return *part;
}

}  // namespace

HostCopy::HostCopy(size_t bytes)
    : bytes_(bytes), data_(memory_.allocate(bytes, "the weights in host memory")) {}

HostCopy::~HostCopy() { memory_.release(data_, bytes_); }

// Declaring -------------------------------------------------------------------------------------

void Parameters::norm(Weight& target, ModuleName name, Dimension size, HeadOrder order) {
  target = {nullptr, dtype_, size.share.count, 1, normOffset_};
  const StorageType type = storageOf(dtype_);
  const size_t storage = store(&target.data, bytesOf(type, target.rows), type,
                               ParameterPart::kWeight, 1.0f - normOffset_);
  declare({name, ParameterPart::kWeight, {}, {size}, false, {type}, storage, order}, {storage});
}

// Memory is zeroed, so an offset of 1 gives ones.
void Parameters::ones(Weight& target, int64_t size) {
  target = {nullptr, dtype_, size, 1, /*offset=*/1.0f};
  const StorageType type = storageOf(dtype_);
  store(&target.data, bytesOf(type, size), type, ParameterPart::kWeight, 0.0f);
}

void Parameters::vector(Weight& target, ModuleName name, Dimension size,
                        std::optional<DType> dtype) {
  target = {nullptr, dtype.value_or(dtype_), size.share.count, 1};
  const StorageType type = storageOf(target.dtype);
  const size_t storage =
      store(&target.data, bytesOf(type, target.rows), type, ParameterPart::kWeight);
  declare({name, ParameterPart::kWeight, {}, {size}, false, {type}, storage, {}}, {storage});
}

void Parameters::matrix(LinearWeight& target, ModuleName name, Dimension rows, Dimension cols,
                        int64_t storedRows, bool isMultiplied) {
  target.format = formatOf(name);
  target.dtype = dtype_;
  target.rows = storedRows;
  target.cols = cols.share.count;
  if (isMultiplied) linears_.push_back({&target, target.rows});
  const StorageType type = target.format.type;
  const size_t storage =
      store(&target.data, bytesOf(type, target.rows * target.cols), type, ParameterPart::kWeight);
  declare({name, ParameterPart::kWeight, {}, {rows, cols}, false, {type}, storage, {}}, {storage});
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
  const int64_t scaleCols =
      std::gcd(int64_t{stored.scaleCols},
               isOrderDivided(stored, layers.cols) ? kOrderedBlockCols : layers.cols.share.first);
  WeightFormat format = stored;
  format.scaleRows = static_cast<int32_t>(scaleRows);
  format.scaleCols = static_cast<int32_t>(scaleCols);
  return format;
}

void Parameters::linear(LinearWeight& target, const LinearLayers& layers) {
  const auto& [parts, cols, bias, storedRows, experts] = layers;
  if (areMixed(layers)) {
    auto& weights = mixed_.emplace_back(std::make_unique<LinearWeight[]>(parts.size()));
    target.parts = weights.get();
    target.numParts = static_cast<int32_t>(parts.size());
    target.dtype = dtype_;
    target.cols = cols.share.count;
    for (size_t i = 0; i < parts.size(); ++i) {
      linear(weights[i], {.parts = {parts[i]}, .cols = cols, .bias = bias});
      target.rows += weights[i].rows;
    }
    return;
  }
  const WeightFormat stored = commonFormat(parts);
  int64_t expertRows = 0;
  for (const LinearPart& part : parts) expertRows += part.rows.share.count;
  const int64_t rows = experts.of > 0 ? experts.count * expertRows : expertRows;
  target.format = formatInMemory(stored, layers);
  target.dtype = dtype_;
  target.cols = cols.share.count;
  target.rows = std::max(rows, storedRows);
  linears_.push_back({&target, experts.of > 0 ? expertRows : target.rows});

  const size_t weights = storePart(target, ParameterPart::kWeight);
  const bool hasScales = stored.hasScales();
  const size_t scales = hasScales ? storePart(target, ParameterPart::kScales) : 0;
  const size_t zeros = hasScales && stored.hasZeros ? storePart(target, ParameterPart::kZeros) : 0;
  const size_t order = hasScales && stored.isOrdered ? storePart(target, ParameterPart::kOrder) : 0;
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
      declare({layer.name, part, layers.experts, std::move(shape), isLinear, stored, weights,
               layer.order},
              {storage, rowOffset, expertRows});
    };
    declarePart(ParameterPart::kWeight, {partRows, cols}, weights);
    if (stored.hasScales()) {
      const Dimension rowBlocks = {blocksOf(partRows.share, stored.scaleRows), partRows.of};
      Dimension colBlocks = {blocksOf(cols.share, stored.scaleCols), cols.of};
      if (isOrderDivided(stored, cols)) colBlocks.share = Share::all(colBlocks.share.of);
      declarePart(ParameterPart::kScales, {rowBlocks, colBlocks}, scales);
      if (stored.hasZeros) declarePart(ParameterPart::kZeros, {rowBlocks, colBlocks}, zeros);
      const Dimension allCols = {Share::all(cols.share.of), cols.of};
      if (stored.isOrdered) declarePart(ParameterPart::kOrder, {allCols}, order);
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

bool Parameters::areMixed(const LinearLayers& layers) const {
  if (layers.experts.of > 0) return false;
  const WeightFormat first = formatOf(layers.parts.front().name);
  bool differ = false;
  for (const LinearPart& part : layers.parts) {
    const WeightFormat format = formatOf(part.name);
    if (format.hasScales()) return false;
    differ = differ || format != first;
  }
  return differ;
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
                         std::optional<float> constant) {
  storages_.push_back({data, bytes, type, part, constant, nullptr});
  return storages_.size() - 1;
}

size_t Parameters::storePart(LinearWeight& weight, ParameterPart part) {
  const auto typeOf = [&] {
    switch (part) {
      case ParameterPart::kScales:
        return weight.format.scaleBytes() == 1 ? StorageType::kInt8 : StorageType::kFloat32;
      case ParameterPart::kZeros:
        return StorageType::kInt8;
      case ParameterPart::kOrder:
        return StorageType::kFloat32;  // as wide as its integers
      default:
        return weight.format.type;
    }
  };
  const auto memberOf = [&] {
    switch (part) {
      case ParameterPart::kScales:
        return &weight.scales;
      case ParameterPart::kZeros:
        return reinterpret_cast<const void**>(&weight.zeros);
      case ParameterPart::kOrder:
        return reinterpret_cast<const void**>(&weight.order);
      default:
        return &weight.data;
    }
  };
  const size_t index = store(memberOf(), bytesOfPart(weight, part), typeOf(), part);
  storages_[index].linear = &weight;
  return index;
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

void Parameters::arrange(Ops& ops) {
  for (const auto& [weight, sliceRows] : linears_) {
    if (weight->rows > 0 && weight->cols > 0) ops.arrange(*weight, sliceRows);
  }
}

void Parameters::release() noexcept {
  for (const Storage& storage : storages_) *storage.data = nullptr;
  buffers_.clear();
}

// Threads that copy matrices in strides.
int Parameters::numReaders(const std::vector<CheckedSource>& readings) {
  const bool hasStrides = std::any_of(readings.begin(), readings.end(), [](const auto& reading) {
    return reading.source->strides.row != 0;
  });
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return hasStrides ? std::clamp(cores, 1, 16) : 1;
}

void Parameters::load(Ops& ops, const std::vector<std::string>& paths,
                      const std::vector<ParameterSource>& sources, const Progress& progress,
                      StopToken stop) {
  for (const Linear& linear : linears_) linear.weight->isArranged = false;
  std::vector<CheckpointFile> files;
  for (const std::string& path : paths) files.emplace_back(path);
  const std::vector<CheckedSource> readings = check(sources, files);
  try {
    for (const CheckedSource& checked : readings) {
      if (checked.parameter->part == ParameterPart::kOrder) {
        readOrder(checked, files[checked.source->file]);
      }
    }
    allocate(ops);
    ThreadPool pool(numReaders(readings));
    int64_t bytesRead = 0;
    int64_t tensorsDone = 0;
    for (const CheckedSource& checked : readings) {
      const CheckpointFile& file = files[checked.source->file];
      switch (checked.parameter->part) {
        case ParameterPart::kScales:
        case ParameterPart::kZeros:
          readScales(ops, checked, file);
          break;
        case ParameterPart::kOrder:
          uploadOrder(ops, checked);
          break;
        default:
          if (checked.source->strides.row != 0) {
            if (stop.stopRequested()) throw Error("SHUT_DOWN", "loading the weights was aborted");
            readStrided(ops, checked, file, pool);
          } else {
            readWeight(ops, checked, file, stop);
          }
      }
      const Parameter& parameter = *checked.parameter;
      bytesRead += bytesOf(checked.source->type, parameter.rows().count * parameter.cols().count);
      progress(bytesRead, ++tensorsDone);
    }
    arrange(ops);
    ops.synchronize();
    orders_.clear();
  } catch (...) {
    orders_.clear();
    release();
    throw;
  }
}

// Orders first, as weights are stored in them; then by position in the files.
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
    const bool isStrided = source.strides.row != 0;
    const bool quantizes = mustQuantize(parameter, source.type);
    if (quantizes) {
      if (source.strides.row != 0 || !canQuantize(parameter.format, source.type)) {
        throwInvalid(name + " cannot be quantized to its format", file.path());
      }
      isNamed[index + 1][tensor] = true;  // its scales, declared after it
    }
    const bool canHaveStrides =
        source.layout == TensorLayout::kRows && !quantizes &&
        (isFloat(source.type) ||
         (source.strides.col == 1 && (!isPacked(source.type) || source.strides.row % 2 == 0)));
    const Share columns = parameter.cols();
    const int64_t blockCols = isBlocks(source.type) ? blockSizeOf(source.type).cols : 1;
    if (columns.of % blockCols != 0 || columns.first % blockCols != 0 ||
        columns.count % blockCols != 0) {
      throwInvalid(
          name + " has columns that its blocks of " + std::to_string(blockCols) + " do not divide",
          file.path());
    }
    if (isBlocks(source.type) && isBlocks(parameter.format.type) &&
        source.type != parameter.format.type) {
      throwInvalid(name + " has other blocks than its format", file.path());
    }
    if (!canBeStoredAs(parameter, source.type) || (isStrided && !canHaveStrides)) {
      throwInvalid(name + " is stored in a type that this model does not support for it",
                   file.path());
    }
    if (source.offset < 0) {
      throwInvalid("a tensor cannot begin at byte " + std::to_string(source.offset), file.path());
    }
    if (isStrided) {
      file.require(spanInFile(source, parameter));
    } else {
      requireInFile(source, parameter, file);
    }
    const Place& place = places_[index];
    readings.push_back({&source, &parameter, place.storage,
                        place.rowOffset + tensor * place.expertRows,
                        quantizes ? places_[index + 1].storage : 0});
  }
  for (size_t i = 0; i < declared_.size(); ++i) {
    const auto missing = std::find(isNamed[i].begin(), isNamed[i].end(), false);
    if (missing == isNamed[i].end()) continue;
    throwInvalid(declared_[i].toString(missing - isNamed[i].begin()) + " has no source",
                 files.empty() ? std::string() : files.front().path());
  }
  std::sort(readings.begin(), readings.end(), [](const CheckedSource& a, const CheckedSource& b) {
    const auto place = [](const CheckedSource& checked) {
      const bool isOrder = checked.parameter->part == ParameterPart::kOrder;
      return std::tuple(!isOrder, checked.source->file, checked.source->offset);
    };
    return place(a) < place(b);
  });
  return readings;
}

void Parameters::requireInFile(const ParameterSource& source, const Parameter& parameter,
                               const CheckpointFile& file) const {
  const auto requireBytes = [&](int64_t bytes) { file.require({source.offset, 1, bytes, bytes}); };
  const auto& [wholeRows, firstRow] = source.whole;
  if (source.layout == TensorLayout::kRows) {
    return file.require(rowsInFile(source, parameter, 0, parameter.rows().count));
  }
  if (source.layout == TensorLayout::kOneForAll) return requireBytes(bytesOf(source.type, 1));
  const Share& rows = parameter.rows();
  if (firstRow < 0 || firstRow > wholeRows || rows.of > wholeRows - firstRow) {
    throwInvalid("rows " + std::to_string(firstRow) + " to " + std::to_string(firstRow + rows.of) +
                     " are not in a tensor of " + std::to_string(wholeRows),
                 file.path());
  }
  const int64_t cols = parameter.cols().of;
  requireBytes(
      hasWords(source.layout)
          ? wordBytes(source.layout, parameter.part == ParameterPart::kWeight, wholeRows, cols)
          : bytesOf(source.type, wholeRows * cols));
}

std::vector<int32_t> Parameters::columnsOf(const Parameter& matrix) const {
  const auto order = orders_.find(matrix.weight);
  if (order != orders_.end()) return order->second.columns;
  std::vector<int32_t> columns(static_cast<size_t>(matrix.cols().count));
  std::iota(columns.begin(), columns.end(), static_cast<int32_t>(matrix.cols().first));
  return columns;
}

// Packed elements and blocks travel as bytes.
void Parameters::readWeight(Ops& ops, const CheckedSource& checked, const CheckpointFile& file,
                            StopToken stop) {
  const auto& [source, parameter, storageIndex, rowOffset, scales] = checked;
  if (mustQuantize(*parameter, source->type)) return quantize(ops, checked, file, stop);
  const StorageType stored = storages_[storageIndex].type;
  const Share cols = parameter->cols();
  const bool isOrdered =
      parameter->part == ParameterPart::kWeight && orders_.contains(parameter->weight);
  const int64_t colsInMemory = isOrdered ? storages_[storageIndex].linear->cols : cols.count;
  const int64_t rowBytes = bytesOf(stored, colsInMemory);
  std::byte* out = buffers_[storageIndex].as<std::byte>() + rowOffset * rowBytes;
  const int64_t rowsPerPiece =
      std::max<int64_t>(1, kBytesPerPiece / bytesOf(source->type, cols.count));
  // The type of what is uploaded, and its elements in a row.
  StorageType inFile = source->type;
  std::unique_ptr<const HostBytes> repacked;
  if (isBlocks(source->type) && isFloat(stored)) {
    inFile = StorageType::kFloat32;
    repacked = std::make_unique<DecodedRows>(matrixInFile(*source, *parameter, file));
  } else if (source->layout == TensorLayout::kInterleavedHeads) {
    repacked = std::make_unique<StoredRows>(matrixInFile(*source, *parameter, file));
  } else if (source->layout != TensorLayout::kRows || isOrdered) {
    TensorRows whole = source->whole;
    whole.firstRow += parameter->rows().first;
    repacked = std::make_unique<RepackedRows>(file, source->offset, source->layout, whole, cols.of,
                                              columnsOf(*parameter));
  }
  for (const RowRun& run : parameter->rowRuns()) {
    const int64_t end = run.first + run.count;
    for (int64_t row = run.first; row < end; row += rowsPerPiece) {
      if (stop.stopRequested()) throw Error("SHUT_DOWN", "loading the weights was aborted");
      const int64_t count = std::min(rowsPerPiece, end - row);
      const int64_t width = lengthOf(inFile, colsInMemory);
      const StorageType type = asBytes(stored);
      if (repacked) {
        const int64_t offset = row * bytesOf(inFile, colsInMemory);
        ops.upload(out, type, {*repacked, offset, asBytes(inFile), count, width, width});
      } else {
        const FileRows rows = rowsInFile(*source, *parameter, row, count);
        file.willRead(rows);
        ops.upload(out, type,
                   {file, rows.offset, asBytes(inFile), count, width, lengthOf(inFile, cols.of)});
      }
      out += count * rowBytes;
    }
  }
}

// Reads the matrix's whole span, and copies its elements in the order of memory.
void Parameters::readStrided(Ops& ops, const CheckedSource& checked, const CheckpointFile& file,
                             ThreadPool& pool) {
  // Clang 14 captures no structured bindings.
  const ParameterSource* source = checked.source;
  const Parameter* parameter = checked.parameter;
  const size_t storageIndex = checked.storage;
  const int64_t rowOffset = checked.rowOffset;
  const FileRows span = spanInFile(*source, *parameter);
  std::vector<std::byte> stored(static_cast<size_t>(span.rowBytes));
  pool.parallelFor(span.rowBytes, kMinBytesPerRead, [&](int64_t begin, int64_t end, int) {
    file.read(span.offset + begin, end - begin, stored.data() + begin);
  });

  // Packed elements travel as bytes.
  const int64_t perElement = isPacked(source->type) ? 2 : 1;
  const StorageType inFile = isPacked(source->type) ? StorageType::kInt8 : source->type;
  const Strides strides = {source->strides.row / perElement, source->strides.col};
  const std::vector<int64_t> rows = rowsOf(*parameter);
  const int64_t cols = parameter->cols().count / perElement;
  std::vector<std::byte> matrix(rows.size() * static_cast<size_t>(bytesOf(inFile, cols)));
  const auto copy = [&]<class Element>(Element) {
    copyStrided(reinterpret_cast<const Element*>(stored.data()), strides, rows, cols,
                reinterpret_cast<Element*>(matrix.data()), pool);
  };
  switch (sizeOf(inFile)) {
    case sizeof(uint32_t):
      copy(uint32_t{});
      break;
    case sizeof(uint16_t):
      copy(uint16_t{});
      break;
    default:
      copy(uint8_t{});
  }

  const StorageType ofStorage = storages_[storageIndex].type;
  const StorageType type = isPacked(ofStorage) ? StorageType::kInt8 : ofStorage;
  const BytesInMemory bytes(matrix.data());
  ops.upload(buffers_[storageIndex].as<std::byte>() + rowOffset * bytesOf(type, cols), type,
             {bytes, 0, inFile, static_cast<int64_t>(rows.size()), cols, cols});
  ops.synchronize();  // the upload may still read `matrix`
}

// Repeats each scale for the weight's smaller blocks in memory, if it has any.
void Parameters::quantize(Ops& ops, const CheckedSource& checked, const CheckpointFile& file,
                          StopToken stop) {
  const auto& [source, parameter, storage, rowOffset, scaleStorage] = checked;
  const LinearWeight& weight = *storages_[scaleStorage].linear;
  const StorageType type = weight.format.type;
  const Share cols = parameter->cols();
  std::unique_ptr<const HostBytes> elements;
  std::unique_ptr<const HostBytes> scales;
  if (isBlocks(source->type)) {
    const MatrixInFile matrix = matrixInFile(*source, *parameter, file);
    elements = std::make_unique<BlockElements>(matrix);
    scales = std::make_unique<BlockScales>(matrix);
  } else {
    const int64_t offset =
        source->offset + bytesOf(source->type, parameter->rows().first * cols.of);
    const FloatMatrix matrix{file, offset, dtypeOf(source->type), cols,
                             parameter->format.scaleCols};
    elements = std::make_unique<QuantizedElements>(matrix, type);
    scales = std::make_unique<QuantizedScales>(matrix, type, weight.format.scaleCols);
  }
  constexpr StorageType kBytes = StorageType::kInt8;
  const int64_t width = bytesOf(type, cols.count);
  const int64_t numScales = weight.scaleColumns();
  std::byte* out = buffers_[storage].as<std::byte>() + rowOffset * width;
  float* outScales = buffers_[scaleStorage].as<float>() + rowOffset * numScales;
  const int64_t rowsPerPiece =
      std::max<int64_t>(1, kBytesPerPiece / bytesOf(source->type, cols.of));
  for (const RowRun& run : parameter->rowRuns()) {
    const int64_t end = run.first + run.count;
    for (int64_t row = run.first; row < end; row += rowsPerPiece) {
      if (stop.stopRequested()) throw Error("SHUT_DOWN", "loading the weights was aborted");
      const int64_t count = std::min(rowsPerPiece, end - row);
      ops.upload(out, kBytes, {*elements, row * width, kBytes, count, width, width});
      ops.upload(outScales, StorageType::kFloat32,
                 {*scales, row * numScales * static_cast<int64_t>(sizeof(float)),
                  StorageType::kFloat32, count, numScales, numScales});
      out += count * width;
      outScales += count * numScales;
    }
  }
}

// Scales and zero points.
void Parameters::readScales(Ops& ops, const CheckedSource& checked, const CheckpointFile& file) {
  const ParameterSource* source = checked.source;
  const Parameter* parameter = checked.parameter;
  const Share& rows = parameter->rows();
  const Share groups = parameter->cols();
  const int64_t firstRow = source->whole.firstRow + rows.first;
  if (parameter->part == ParameterPart::kZeros) {
    return uploadBlocks(ops, checked,
                        readZeros(file, source->offset, source->layout, source->whole.wholeRows,
                                  firstRow, rows.count, groups));
  }
  const auto elementBytes = static_cast<int64_t>(sizeOf(source->type));
  std::vector<std::byte> stored;
  const auto read = [&](int64_t first, int64_t count) {
    const size_t at = stored.size();
    stored.resize(at + static_cast<size_t>(count * elementBytes));
    file.read(source->offset + first * elementBytes, count * elementBytes, stored.data() + at);
  };
  // Of block [row, group], its index in `stored`.
  int64_t rowStride = 0;
  int64_t groupStride = 0;
  switch (source->layout) {
    case TensorLayout::kOneForAll:
      read(0, 1);
      break;
    case TensorLayout::kTransposed:
      for (int64_t group = 0; group < groups.count; ++group) {
        read((groups.first + group) * source->whole.wholeRows + firstRow, rows.count);
      }
      rowStride = 1;
      groupStride = rows.count;
      break;
    default:
      rowStride = groups.count;
      groupStride = 1;
      if (source->strides.row != 0) {
        rowStride = source->strides.row;
        read(rows.first * rowStride + groups.first, (rows.count - 1) * rowStride + groups.count);
        break;
      }
      const int64_t rowsPerRead = groups.count == groups.of ? rows.count : 1;
      for (int64_t row = 0; row < rows.count; row += rowsPerRead) {
        read((rows.first + row) * groups.of + groups.first, rowsPerRead * groups.count);
      }
  }
  const auto indexOf = [&](int64_t i) {
    return i / groups.count * rowStride + i % groups.count * groupStride;
  };
  const auto count = static_cast<size_t>(rows.count * groups.count);
  const auto refuse = [&](const std::string& value) {
    throwInvalid(parameter->toString(std::max<int64_t>(0, parameter->tensorOf(source->expert))) +
                     " has the scale " + value + "; scales must be finite",
                 file.path());
  };
  if (source->type == StorageType::kInt8) {
    constexpr uint8_t kNan = 0xff;
    std::vector<uint8_t> exponents(count);
    for (size_t i = 0; i < count; ++i) {
      exponents[i] = static_cast<uint8_t>(stored[indexOf(static_cast<int64_t>(i))]);
      if (exponents[i] == kNan) refuse("NaN");
    }
    return uploadBlocks(ops, checked, exponents);
  }
  std::vector<float> scales(count);
  for (size_t i = 0; i < count; ++i) {
    scales[i] = elementAt(stored.data(), dtypeOf(source->type), indexOf(static_cast<int64_t>(i)));
    if (!std::isfinite(scales[i])) refuse(std::to_string(scales[i]));
  }
  uploadBlocks(ops, checked, scales);
}

// `blocks` [rows, groups] of this rank's share, each repeated for the weight's smaller blocks in
// memory, if it has any.
template <class T>
void Parameters::uploadBlocks(Ops& ops, const CheckedSource& checked,
                              const std::vector<T>& blocks) {
  const auto& [source, parameter, storage, rowOffset, ofMatrix] = checked;
  const Parameter& matrix = matrixOf(parameter);
  const WeightFormat& inMemory = storages_[storage].linear->format;
  const int64_t numCols = storages_[storage].linear->scaleColumns();
  const auto order = orders_.find(matrix.weight);
  const Share& rowBlocks = parameter->rows();
  const Share colBlocks = parameter->cols();

  const std::vector<int64_t> rowInShare = rowsOf(matrix);
  const int64_t numRows = ceilDiv(matrix.rows().count, inMemory.scaleRows);
  std::vector<T> out(static_cast<size_t>(numRows * numCols));
  for (int64_t row = 0; row < numRows; ++row) {
    const int64_t rowBlock =
        (matrix.rows().first + rowInShare[row * inMemory.scaleRows]) / matrix.format.scaleRows;
    for (int64_t col = 0; col < numCols; ++col) {
      const int64_t colBlock =
          order != orders_.end()
              ? order->second.groups[col]
              : (matrix.cols().first + col * inMemory.scaleCols) / matrix.format.scaleCols;
      out[row * numCols + col] =
          blocks[(rowBlock - rowBlocks.first) * colBlocks.count + colBlock - colBlocks.first];
    }
  }
  auto* to = buffers_[storage].as<T>() + rowOffset / inMemory.scaleRows * numCols;
  ops.copyToDevice(to, out.data(), out.size() * sizeof(T));
  ops.synchronize();  // copies may still read `out`
}

void Parameters::readOrder(const CheckedSource& checked, const CheckpointFile& file) {
  const auto& [source, parameter, storage, rowOffset, ofMatrix] = checked;
  const Parameter& matrix = matrixOf(parameter);
  std::vector<int32_t> groupOf(static_cast<size_t>(parameter->rows().of));
  file.read(source->offset, static_cast<int64_t>(groupOf.size() * sizeof(int32_t)),
            reinterpret_cast<std::byte*>(groupOf.data()));
  LinearWeight& weight = *storages_[storage].linear;
  const ColumnOrder order =
      columnOrder(groupOf, matrix.format.scaleCols, matrix.cols(), weight.format.scaleCols);
  if (order.columns.empty()) {
    throwInvalid(parameter->toString() + ", the group of each column, must name each group " +
                     std::to_string(matrix.format.scaleCols) + " times, the last one the rest",
                 file.path());
  }
  const auto [known, isNew] = orders_.emplace(matrix.weight, order);
  if (!isNew && known->second != order) {
    throwInvalid(parameter->toString() +
                     " differs from the order of a matrix with which it forms one weight; " +
                     "matrices with the same input must have the same act-order",
                 file.path());
  }
  weight.cols = static_cast<int64_t>(order.columns.size());
  weight.inputCols = matrix.cols().count;
  for (Storage& part : storages_) {
    if (part.linear == &weight) part.bytes = bytesOfPart(weight, part.part);
  }
}

void Parameters::uploadOrder(Ops& ops, const CheckedSource& checked) {
  const Parameter& matrix = matrixOf(checked.parameter);
  std::vector<int32_t> columns = columnsOf(matrix);
  for (int32_t& column : columns) {
    if (column >= 0) column -= static_cast<int32_t>(matrix.cols().first);
  }
  ops.copyToDevice(buffers_[checked.storage].data(), columns.data(),
                   columns.size() * sizeof(int32_t));
  ops.synchronize();  // the copy may still read `columns`
}

void Parameters::fillRandom(Ops& ops, uint64_t seed) {
  for (const Linear& linear : linears_) linear.weight->isArranged = false;
  try {
    allocate(ops);
    for (size_t i = 0; i < storages_.size(); ++i) {
      const Storage& storage = storages_[i];
      const auto bytes = static_cast<int64_t>(storage.bytes);
      const int64_t count =
          isPacked(storage.type) ? 2 * bytes
          : isBlocks(storage.type)
              ? bytes / blockSizeOf(storage.type).bytes * blockSizeOf(storage.type).cols
              : bytes / static_cast<int64_t>(sizeOf(storage.type));
      if (storage.part == ParameterPart::kOrder) {
        std::vector<int32_t> order(static_cast<size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        ops.copyToDevice(buffers_[i].data(), order.data(), storage.bytes);
        ops.synchronize();  // the copy may still read `order`
        continue;
      }
      const StorageType scaled = storage.linear ? storage.linear->format.type : storage.type;
      const auto [mean, std] = storage.constant ? std::pair(*storage.constant, 0.0f)
                                                : randomValues(storage.type, storage.part, scaled);
      ops.fillRandom(buffers_[i].data(), storage.type, count, mean, std,
                     seed + i * kParameterSeedStride);
    }
    arrange(ops);
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
      constexpr StorageType kBytes = StorageType::kInt8;
      const auto count = static_cast<int64_t>(storages_[i].bytes);
      ops.upload(buffers_[i].data(), kBytes, {memory, from, kBytes, 1, count, count});
      from += count;
    }
    ops.synchronize();
  } catch (...) {
    release();
    throw;
  }
}

}  // namespace uniproc
