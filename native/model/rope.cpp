#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <thread>
#include <vector>

#include "base/thread_pool.h"

namespace uniproc {
namespace {

// Positions whose angles take as long as starting a thread.
constexpr int32_t kMinPositions = 1024;

int numThreadsFor(int32_t maxModelLen) {
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::clamp(maxModelLen / kMinPositions, 1, std::min(cores, 16));
}

// theta^(2i / headDim) for each pair i: positions per radian.
std::vector<float> positionsPerRadian(const ModelSpec& spec) {
  std::vector<float> out(spec.headDim / 2);
  const auto theta = static_cast<float>(spec.ropeTheta);
  for (size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(spec.headDim);
    out[i] =
        static_cast<float>(std::pow(static_cast<double>(theta), static_cast<double>(exponent)));
  }
  return out;
}

// Llama 3.1: stretches long waves by `factor`, keeps short ones, blends those between.
float llama3Frequency(float frequency, const RopeScaling& scaling) {
  const auto factor = static_cast<float>(scaling.factor);
  const double contextLength = scaling.originalMaxPositionEmbeddings;
  const auto longWave = static_cast<float>(contextLength / scaling.lowFreqFactor);
  const auto shortWave = static_cast<float>(contextLength / scaling.highFreqFactor);
  const float wave = (1.0f / frequency) * static_cast<float>(2.0 * std::numbers::pi);
  if (wave > longWave) return frequency / factor;
  if (wave < shortWave) return frequency;
  const float waves = (1.0f / wave) * static_cast<float>(contextLength);
  const float smooth = (waves - static_cast<float>(scaling.lowFreqFactor)) /
                       static_cast<float>(scaling.highFreqFactor - scaling.lowFreqFactor);
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

// YaRN: keeps pairs that turn more than betaFast times in the original context, stretches those
// that turn less than betaSlow times by `factor`, with a linear ramp between.
std::vector<float> yarnFrequencies(const ModelSpec& spec) {
  const RopeScaling& scaling = spec.ropeScaling;
  const auto pairThatTurns = [&](double times) {
    return spec.headDim *
           std::log(scaling.originalMaxPositionEmbeddings / (times * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(spec.ropeTheta));
  };
  double low = pairThatTurns(scaling.betaFast);
  double high = pairThatTurns(scaling.betaSlow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, spec.headDim - 1.0);
  if (low == high) high += 0.001;

  std::vector<float> out = positionsPerRadian(spec);
  for (size_t i = 0; i < out.size(); ++i) {
    const float kept = 1.0f / out[i];
    const float stretched = 1.0f / (static_cast<float>(scaling.factor) * out[i]);
    const float ramp =
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float share = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
    out[i] = stretched * (1.0f - share) + kept * share;
  }
  return out;
}

// Radians per position of each pair.
std::vector<float> frequencies(const ModelSpec& spec) {
  if (spec.ropeScaling.type == RopeScaling::Type::kYarn) return yarnFrequencies(spec);
  std::vector<float> out = positionsPerRadian(spec);
  for (float& frequency : out) {
    frequency = 1.0f / frequency;
    if (spec.ropeScaling.type == RopeScaling::Type::kLinear) {
      frequency /= static_cast<float>(spec.ropeScaling.factor);
    } else if (spec.ropeScaling.type == RopeScaling::Type::kLlama3) {
      frequency = llama3Frequency(frequency, spec.ropeScaling);
    }
  }
  return out;
}

}  // namespace

std::unique_ptr<float[]> ropeTable(const ModelSpec& spec, int32_t maxModelLen) {
  const std::vector<float> perPosition = frequencies(spec);
  const auto scale = static_cast<float>(spec.ropeScaling.attentionFactor);
  const size_t half = perPosition.size();
  auto table = std::make_unique<float[]>(2 * half * maxModelLen);
  ThreadPool pool(numThreadsFor(maxModelLen));
  pool.parallelFor(maxModelLen, kMinPositions, [&](int64_t begin, int64_t end, int) {
    for (int64_t position = begin; position < end; ++position) {
      float* cos = table.get() + 2 * half * position;
      float* sin = cos + half;
      for (size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(position) * perPosition[i];
        cos[i] = std::cos(angle) * scale;
        sin[i] = std::sin(angle) * scale;
      }
    }
  });
  return table;
}

}  // namespace uniproc
