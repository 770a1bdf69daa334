// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2,
// 3"): four random words from a counter and a key. A number depends only on its counter and key,
// not on when or on which thread it is drawn. The CPU and CUDA backends share this file.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define UNIPROC_HOST_DEVICE __host__ __device__
#else
#define UNIPROC_HOST_DEVICE
#endif

namespace uniproc {

struct PhiloxBlock {
  uint32_t words[4];
};

UNIPROC_HOST_DEVICE constexpr PhiloxBlock philox(PhiloxBlock counter, uint64_t key) {
  uint32_t a = counter.words[0];
  uint32_t b = counter.words[1];
  uint32_t c = counter.words[2];
  uint32_t d = counter.words[3];
  auto low = static_cast<uint32_t>(key);
  auto high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t{0xD2511F53} * a;
    const uint64_t q = uint64_t{0xCD9E8D57} * c;
    a = static_cast<uint32_t>(q >> 32) ^ b ^ low;
    b = static_cast<uint32_t>(q);
    c = static_cast<uint32_t>(p >> 32) ^ d ^ high;
    d = static_cast<uint32_t>(p);
    low += 0x9E3779B9;
    high += 0xBB67AE85;
  }
  return {{a, b, c, d}};
}

// The words for sampling the token at `position` of a request: word i belongs to token id 4 * group
// + i. The counter is (position, group, 0, 0); the key is the request's seed.
UNIPROC_HOST_DEVICE constexpr PhiloxBlock samplingWords(uint64_t seed, int32_t position,
                                                        int32_t group) {
  return philox({{static_cast<uint32_t>(position), static_cast<uint32_t>(group), 0, 0}}, seed);
}

// The words for filling a weight: word i belongs to element 4 * group + i. The counter is (low word
// of group, high word, 0, 1), which sampling never uses.
UNIPROC_HOST_DEVICE constexpr PhiloxBlock fillWords(uint64_t seed, uint64_t group) {
  return philox({{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0, 1}}, seed);
}

// Maps a word's upper 23 bits k to (k + 1/2) / 2^23: uniform in the open interval (0, 1), from
// 2^-24 to 1 - 2^-24, exact in float32.
UNIPROC_HOST_DEVICE constexpr float uniform(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

// The largest -log(-log(u)) of a uniform u: -log(-log(1 - 2^-24)) = 16.6355, rounded up.
constexpr float kMaxGumbel = 16.64f;

// Two independent standard normal numbers from two words (Box and Muller 1958).
UNIPROC_HOST_DEVICE inline void normalPair(uint32_t word0, uint32_t word1, float* normals) {
  const float radius = std::sqrt(-2.0f * std::log(uniform(word0)));
  const float angle = 6.2831853f * uniform(word1);
  normals[0] = radius * std::cos(angle);
  normals[1] = radius * std::sin(angle);
}

}  // namespace uniproc
