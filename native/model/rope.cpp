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

// theta^(2i / rotaryDim) for each pair i: positions per radian.
std::vector<float> positionsPerRadian(double base, int32_t rotaryDim) {
  std::vector<float> out(rotaryDim / 2);
  const auto theta = static_cast<float>(base);
  for (size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotaryDim);
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
  if (shortWave >= longWave) return frequency / factor;  // none is between them
  const float waves = (1.0f / wave) * static_cast<float>(contextLength);
  const float smooth = (waves - static_cast<float>(scaling.lowFreqFactor)) /
                       static_cast<float>(scaling.highFreqFactor - scaling.lowFreqFactor);
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

// YaRN: keeps pairs that turn more than betaFast times in the original context, stretches those
// that turn less than betaSlow times by `factor`, with a linear ramp between.
std::vector<float> yarnFrequencies(const RopeSpec& spec) {
  const RopeScaling& scaling = spec.scaling;
  const auto pairThatTurns = [&](double times) {
    return spec.rotaryDim *
           std::log(scaling.originalMaxPositionEmbeddings / (times * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(spec.theta));
  };
  double low = pairThatTurns(scaling.betaFast);
  double high = pairThatTurns(scaling.betaSlow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, spec.rotaryDim - 1.0);
  if (low == high) high += 0.001;

  std::vector<float> out = positionsPerRadian(spec.theta, spec.rotaryDim);
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

// Stretches each wave by a factor of its own, for contexts up to the original one or beyond.
std::vector<float> longRopeFrequencies(const RopeSpec& spec, int32_t maxModelLen) {
  const bool isLong = maxModelLen > spec.scaling.originalMaxPositionEmbeddings;
  const std::vector<double>& factors =
      isLong ? spec.scaling.longFactors : spec.scaling.shortFactors;
  std::vector<float> out = positionsPerRadian(spec.theta, spec.rotaryDim);
  for (size_t i = 0; i < out.size(); ++i) out[i] = 1.0f / (static_cast<float>(factors[i]) * out[i]);
  return out;
}

// Dynamic NTK: a base that grows with the length of a sequence beyond the original context.
double dynamicTheta(const RopeSpec& spec, int32_t maxModelLen) {
  const double original = spec.scaling.originalMaxPositionEmbeddings;
  const double factor = spec.scaling.factor;
  const double length = std::max<double>(maxModelLen, original);
  const double exponent = spec.rotaryDim / (spec.rotaryDim - 2.0);
  return spec.theta * std::pow(factor * length / original - (factor - 1.0), exponent);
}

// Radians per position of each pair.
std::vector<float> frequencies(const RopeSpec& spec, int32_t maxModelLen) {
  using Type = RopeScaling::Type;
  const Type type = spec.scaling.type;
  if (type == Type::kYarn) return yarnFrequencies(spec);
  if (type == Type::kLongRope) return longRopeFrequencies(spec, maxModelLen);
  const double theta = type == Type::kDynamic ? dynamicTheta(spec, maxModelLen) : spec.theta;
  std::vector<float> out = positionsPerRadian(theta, spec.rotaryDim);
  for (float& frequency : out) {
    frequency = 1.0f / frequency;
    if (type == Type::kLinear || type == Type::kProportional) {
      frequency /= static_cast<float>(spec.scaling.factor);
    } else if (type == Type::kLlama3) {
      frequency = llama3Frequency(frequency, spec.scaling);
    }
  }
  // The angle of pairs that are not rotated is 0.
  if (type == Type::kProportional) {
    std::fill(out.begin() + spec.scaling.rotatedDim / 2, out.end(), 0.0f);
  }
  return out;
}

}  // namespace

std::unique_ptr<float[]> ropeTable(const RopeSpec& spec, int32_t headDim, int32_t maxModelLen) {
  const std::vector<float> perPosition = frequencies(spec, maxModelLen);
  const auto scale = static_cast<float>(spec.scaling.attentionFactor);
  const auto half = static_cast<size_t>(headDim / 2);
  const size_t rotated = perPosition.size();
  auto table = std::make_unique<float[]>(2 * half * maxModelLen);
  ThreadPool pool(numThreadsFor(maxModelLen));
  pool.parallelFor(maxModelLen, kMinPositions, [&](int64_t begin, int64_t end, int) {
    for (int64_t position = begin; position < end; ++position) {
      float* cos = table.get() + 2 * half * position;
      float* sin = cos + half;
      for (size_t i = 0; i < rotated; ++i) {
        const float angle = static_cast<float>(position) * perPosition[i];
        cos[i] = std::cos(angle) * scale;
        sin[i] = std::sin(angle) * scale;
      }
      std::fill(cos + rotated, cos + half, 1.0f);
      std::fill(sin + rotated, sin + half, 0.0f);
    }
  });
  return table;
}

}  // namespace uniproc
