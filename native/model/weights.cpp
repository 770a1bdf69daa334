#include "model/weights.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "model/checkpoint.h"
#include "runtime/error.h"

namespace uniproc {
namespace {

// Rows are read a piece at a time, so that stopping is prompt.
constexpr int64_t kBytesPerPiece = int64_t{64} << 20;
// More than a row of any tensor has elements.
constexpr int64_t kMaxRowStride = int64_t{1} << 28;

struct LayerWeightName {
  const char* name;
  Weight LayerWeights::* weight;
  bool isNorm = false;
};

constexpr LayerWeightName kLayerWeightNames[] = {
    {"inputNorm", &LayerWeights::inputNorm, true},
    {"qkv", &LayerWeights::qkv},
    {"qkvBias", &LayerWeights::qkvBias},
    {"qNorm", &LayerWeights::qNorm, true},
    {"kNorm", &LayerWeights::kNorm, true},
    {"o", &LayerWeights::o},
    {"oBias", &LayerWeights::oBias},
    {"postAttentionNorm", &LayerWeights::postAttentionNorm, true},
    {"gateUp", &LayerWeights::gateUp},
    {"gateUpBias", &LayerWeights::gateUpBias},
    {"down", &LayerWeights::down},
    {"downBias", &LayerWeights::downBias},
};

std::string describe(const std::string& weight, int32_t layer) {
  return weight + " (layer " + std::to_string(layer) + ")";
}

[[noreturn]] void throwInvalid(const std::string& message, const std::string& file = {}) {
  throw Error("CHECKPOINT_INVALID", message, file);
}

int64_t rowBytes(const WeightPart& part) {
  return part.cols * static_cast<int64_t>(sizeOf(part.dtype));
}

FileRows rowsInFile(const WeightPart& part, int64_t first, int64_t count) {
  const int64_t stride = part.rowStride * static_cast<int64_t>(sizeOf(part.dtype));
  return {part.offset + first * stride, count, rowBytes(part), stride};
}

}  // namespace

HostCopy::HostCopy(size_t bytes)
    : bytes_(bytes), data_(memory_.allocate(bytes, "the weights in host memory")) {}

HostCopy::~HostCopy() { memory_.release(data_, bytes_); }

Weights::Weights(const ModelSpec& spec) : layers(spec.numLayers), vocabRows_(spec.vocabRows()) {
  const auto shape = [&spec](Weight& weight, int64_t rows, int64_t cols) {
    weight.dtype = spec.dtype;
    weight.rows = rows;
    weight.cols = cols;
  };
  const int64_t hidden = spec.hiddenSize;
  const int64_t heads = int64_t{spec.numHeads} * spec.headDim;
  const int64_t intermediate = spec.intermediateSize;
  shape(embedTokens, spec.vocabShard.size, hidden);
  shape(norm, hidden, 1);
  if (!spec.tieWordEmbeddings) shape(lmHead, spec.vocabShard.size, hidden);
  for (LayerWeights& layer : layers) {
    shape(layer.inputNorm, hidden, 1);
    shape(layer.qkv, spec.qkvSize(), hidden);
    if (spec.qkvBias) shape(layer.qkvBias, spec.qkvSize(), 1);
    if (spec.qkNorm) shape(layer.qNorm, spec.headDim, 1);
    if (spec.qkNorm) shape(layer.kNorm, spec.headDim, 1);
    shape(layer.o, hidden, heads);
    if (spec.outputBias) shape(layer.oBias, hidden, 1);
    shape(layer.postAttentionNorm, hidden, 1);
    shape(layer.gateUp, 2 * intermediate, hidden);
    if (spec.gateUpBias) shape(layer.gateUpBias, 2 * intermediate, 1);
    shape(layer.down, hidden, intermediate);
    if (spec.downBias) shape(layer.downBias, hidden, 1);
  }
}

std::vector<Weights::Named> Weights::named() {
  std::vector<Named> all = {{"embedTokens", 0, &embedTokens, false, vocabRows_},
                            {"norm", 0, &norm, true, norm.rows},
                            {"lmHead", 0, &lmHead, false, vocabRows_}};
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const LayerWeightName& entry : kLayerWeightNames) {
      Weight& weight = layers[i].*entry.weight;
      all.push_back({entry.name, static_cast<int32_t>(i), &weight, entry.isNorm, weight.rows});
    }
  }
  std::erase_if(all, [](const Named& entry) { return entry.weight->rows == 0; });
  return all;
}

void Weights::allocate(Ops& ops) {
  for (const Named& entry : named()) {
    Weight& weight = *entry.weight;
    buffers_.emplace_back(ops, weight.rows * weight.cols * sizeOf(weight.dtype), "the weights");
    weight.data = buffers_.back().data();
  }
}

Weights Weights::fromCheckpoint(Ops& ops, const ModelSpec& spec,
                                const std::vector<std::string>& paths,
                                const std::vector<WeightPart>& parts, const Progress& progress,
                                std::stop_token stop) {
  std::vector<CheckpointFile> files;
  for (const std::string& path : paths) files.emplace_back(path);
  Weights weights(spec);
  const std::vector<Placed> placed = weights.place(parts, files);
  weights.allocate(ops);

  int64_t bytesRead = 0;
  int64_t partsDone = 0;
  for (const auto& [part, index] : placed) {
    const DType dtype = spec.dtype;
    const size_t start = part->rowOffset * part->cols * sizeOf(dtype);
    std::byte* out = weights.buffers_[index].as<std::byte>() + start;
    const int64_t rowsPerPiece = std::max<int64_t>(1, kBytesPerPiece / rowBytes(*part));
    const CheckpointFile& file = files[part->file];
    for (int64_t row = 0; row < part->rows; row += rowsPerPiece) {
      if (stop.stop_requested()) throw Error("SHUT_DOWN", "loading the weights was given up");
      const int64_t count = std::min(rowsPerPiece, part->rows - row);
      const FileRows rows = rowsInFile(*part, row, count);
      file.willRead(rows);
      ops.upload(out, dtype, {file, rows.offset, part->dtype, count, part->cols, part->rowStride});
      out += count * part->cols * sizeOf(dtype);
    }
    bytesRead += part->rows * rowBytes(*part);
    progress(bytesRead, ++partsDone);
  }
  ops.synchronize();
  return weights;
}

std::vector<Weights::Placed> Weights::place(const std::vector<WeightPart>& parts,
                                            const std::vector<CheckpointFile>& files) {
  const std::vector<Named> all = named();
  std::map<std::pair<std::string, int32_t>, size_t> indexOf;
  for (size_t i = 0; i < all.size(); ++i) indexOf[{all[i].name, all[i].layer}] = i;

  std::vector<Placed> placed;
  for (const WeightPart& part : parts) {
    if (part.file < 0 || part.file >= static_cast<int32_t>(files.size())) {
      throwInvalid("a part of " + describe(part.weight, part.layer) + " is in file " +
                   std::to_string(part.file) + " of " + std::to_string(files.size()));
    }
    const CheckpointFile& file = files[part.file];
    const auto found = indexOf.find({part.weight, part.layer});
    if (found == indexOf.end()) {
      throwInvalid("the model has no weight " + describe(part.weight, part.layer), file.path());
    }
    const int64_t rows = all[found->second].rowsInFiles;
    const int64_t cols = all[found->second].weight->cols;
    if (part.cols != cols || part.rows < 1 || part.rowOffset < 0 || part.rowOffset > rows ||
        part.rows > rows - part.rowOffset) {
      throwInvalid(describe(part.weight, part.layer) + " is [" + std::to_string(rows) + ", " +
                       std::to_string(cols) + "], but the part for its rows from " +
                       std::to_string(part.rowOffset) + " on is [" + std::to_string(part.rows) +
                       ", " + std::to_string(part.cols) + "]",
                   file.path());
    }
    if (part.rowStride < cols || part.rowStride > kMaxRowStride) {
      throwInvalid("the rows of a part of " + describe(part.weight, part.layer) + " have " +
                       std::to_string(cols) + " elements and lie " +
                       std::to_string(part.rowStride) + " apart",
                   file.path());
    }
    file.require(rowsInFile(part, 0, part.rows));
    placed.push_back({&part, found->second});
  }
  checkCoverage(all, placed, files);
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.part->file, a.part->offset) < std::tie(b.part->file, b.part->offset);
  });
  return placed;
}

void Weights::checkCoverage(const std::vector<Named>& all, std::vector<Placed>& placed,
                            const std::vector<CheckpointFile>& files) {
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.weight, a.part->rowOffset) < std::tie(b.weight, b.part->rowOffset);
  });
  std::vector<int64_t> rows(all.size(), 0);
  for (const auto& [part, weight] : placed) {
    if (part->rowOffset != rows[weight]) {
      throwInvalid(describe(part->weight, part->layer) + " has its rows up to " +
                       std::to_string(rows[weight]) + ", and next those from " +
                       std::to_string(part->rowOffset) + " on",
                   files[part->file].path());
    }
    rows[weight] += part->rows;
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (rows[i] == all[i].rowsInFiles) continue;
    throwInvalid(describe(all[i].name, all[i].layer) + " has only " + std::to_string(rows[i]) +
                     " of its " + std::to_string(all[i].rowsInFiles) + " rows",
                 files.empty() ? std::string() : files.front().path());
  }
}

Weights Weights::random(Ops& ops, const ModelSpec& spec, uint64_t seed) {
  Weights weights(spec);
  weights.allocate(ops);
  const std::vector<Named> all = weights.named();
  for (size_t i = 0; i < all.size(); ++i) {
    const Weight& weight = *all[i].weight;
    ops.fillRandom(weights.buffers_[i].data(), weight.dtype, weight.rows * weight.cols,
                   all[i].isNorm ? 1.0f : 0.0f, all[i].isNorm ? 0.0f : 0.02f,
                   seed + i * 0x9E3779B97F4A7C15);
  }
  ops.synchronize();
  return weights;
}

std::unique_ptr<const HostCopy> Weights::toHost(Ops& ops) const {
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

Weights Weights::fromHost(Ops& ops, const ModelSpec& spec, const HostCopy& copy) {
  Weights weights(spec);
  weights.allocate(ops);
  const BytesInMemory memory(copy.data());
  int64_t from = 0;
  for (const Buffer& buffer : weights.buffers_) {
    const auto count = static_cast<int64_t>(buffer.bytes() / sizeOf(spec.dtype));
    ops.upload(buffer.data(), spec.dtype, {memory, from, spec.dtype, 1, count, count});
    from += static_cast<int64_t>(buffer.bytes());
  }
  ops.synchronize();
  return weights;
}

}  // namespace uniproc
